"""A chat template is a program that comes with a checkpoint: it runs in transformers' sandbox, and for a bounded time.

The sandbox keeps a template from the rest of Python, not from looping: nested loops of 100,000 turns each are legal.
So the CPU time of one application is limited, which a busy machine does not use up as it would a time limit.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mote.errors import DataError

CPU_SECONDS = 5.0
"""A template takes well below a millisecond for a turn."""


def apply_template(templater: Any, messages: Sequence[dict[str, Any]], *, generate: bool, where: str = "") -> str:
    """The text of `messages` by the chat template of `templater`, a transformers processor or tokenizer.

    generate: whether the text ends where an answer begins. where: the row, for messages. Raises DataError when the
    template raises, or takes more than CPU_SECONDS (in the main thread; elsewhere Python has no such limit).
    """
    try:
        with _limited():
            return str(templater.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))
    except Exception as error:  # a template can raise anything at all
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        place = f"{where}: " if where else ""
        raise DataError(
            f"{place}the checkpoint's chat template fails: {reason}; replace chat_template.jinja"
        ) from error


@contextmanager
def _limited() -> Iterator[None]:
    def stop(signum: int, frame: object) -> None:
        raise TimeoutError(f"it ran for {CPU_SECONDS:g} seconds without an end")

    try:
        before = signal.signal(signal.SIGVTALRM, stop)
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
