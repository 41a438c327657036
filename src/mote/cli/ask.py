"""`mote ask`: one question about one picture, the answer as it comes."""

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mote.cli.options import AsJson, Debug, Seed, Threads

EXAMPLE = 'mote ask runs/small/packed picture.png "What is at the top left?"'


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, dense, up-cycled or packed.")],
    image: Annotated[Path, typer.Argument(help="Picture file.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Likeliest tokens that sum to this share.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the answer; several times.")] = None,
    features: Annotated[Path | None, typer.Option("--features", help="Cache of vision features on disk.")] = None,
    times: Annotated[bool, typer.Option("--times", help="Say on stderr where the time went.")] = False,
    seed: Seed = None,
    threads: Threads = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Ask about a picture.

    The answer is printed as it is generated.
    """
    started, begun = _seconds_since_start(), time.perf_counter()
    import json

    with _no_garbage():
        from mote.run.assistant import load
        from mote.run.engine import Engine

        imported = time.perf_counter()
        assistant = load(checkpoint, threads=threads, features=features)
    opened = time.perf_counter()
    stream = None if as_json else lambda text: print(text, end="", flush=True)
    options: dict[str, Any] = {"stream": stream, "max_new_tokens": max_tokens}
    seconds = {"start": started, "imports": imported - begun, "load": opened - imported}
    if isinstance(assistant, Engine):
        answer = _answer(assistant, image, question, options, temperature, top_p, seed or 0, stop or ())
        inside = dict(assistant.opening)
        seconds["imports"] += inside["imports"]
        seconds["load"] -= inside["imports"]
        seconds |= answer.seconds
        text, details = answer.text, {"finish": answer.finish, "tokens": len(answer.tokens)}
    else:
        text, details = _plain(assistant, image, question, options, temperature, stop), {}
        seconds["answer"] = time.perf_counter() - opened
    print(json.dumps({"image": str(image), "question": question, "answer": text, **details, "seconds": seconds})
          if as_json else "")  # fmt: skip
    if times:
        from mote.cli.failures import say

        parts = ", ".join(f"{name.replace('_', ' ')} {value:.2f} s" for name, value in seconds.items())
        say(f"{parts}; {sum(seconds.values()):.2f} s from command to last word")


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Imports without looking for garbage, of which there is none yet: a quarter faster."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor will there be later
        gc.enable()


def _seconds_since_start() -> float:
    """How long this process has run; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):  # not Linux
        return 0.0


def _answer(
    engine: Any,
    image: Path,
    question: str,
    options: dict[str, Any],
    temperature: float,
    top_p: float,
    seed: int,
    stop: Any,
) -> Any:
    from mote.run.sampling import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    return engine.answer(image, question, sampling=sampling, stop=tuple(stop), **options)


def _plain(assistant: Any, image: Path, question: str, options: dict[str, Any], temperature: float, stop: Any) -> str:
    from mote.errors import UnsupportedModelError

    if temperature or stop:
        raise UnsupportedModelError("this checkpoint runs in transformers, greedily; drop --temperature and --stop")
    answer: str = assistant.ask(image, question, **options)
    return answer
