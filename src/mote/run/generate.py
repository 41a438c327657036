"""Generation on the engine, token by token: ends, stop strings, text that is streamed only once it is certain.

A token's text is known when no later token can change it: an incomplete character, and text that may grow into a stop
string, are held back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mote.errors import EngineError
from mote.run.cache import Sequence as Text
from mote.run.sampling import Sampler, Sampling, log_probability

if TYPE_CHECKING:
    from mote.run.engine import Engine

Finish = Literal["end", "stop", "length"]
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Token:
    """One step of an answer. text: what has become certain with it; logprob in nats, of the model's own distribution;
    finish: why it is the last one, else None. An end token has id, but no text."""

    id: int
    text: str
    logprob: float
    finish: Finish | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer. tokens, logprobs: the end token is among them; seconds: "tower_loading" and
    "seeing" (vision tower and connector), "prefill", "decode"."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    prompt_tokens: int = 0
    reused_tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def generate(
    engine: "Engine",
    sequence: Text,
    logits: NDArray[np.float32],
    *,
    max_tokens: int,
    ends: Iterable[int] = (),
    stop: Sequence[str] = (),
    sampling: Sampling | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> Iterator[Token]:
    """Continues `sequence` after `logits` fp32 [V], those of its last token, as a stream.

    ends: tokens that end the text. stop: strings that end it, which are not part of it. decode: ids to text; without
    it texts are empty. The model's last position ends it as max_tokens does. Raises CancelledError after
    `Engine.cancel`.
    """
    if max_tokens < 1 or (stop and decode is None) or "" in stop:
        raise EngineError("generate: max_tokens must be at least 1, and stop strings need text that is not empty")
    sampler, final, ids = Sampler(sampling or Sampling()), set(ends), list[int]()
    said = _Said(stop)
    while True:
        token = sampler(logits)
        logprob = log_probability(logits, token)
        if token in final:
            yield Token(token, said.rest(), logprob, "end")
            return
        ids.append(token)
        certain = said.hear(decode(ids)) if decode is not None else ""
        full = len(ids) == max_tokens or sequence.length + sequence.num_waiting >= engine.positions
        finish: Finish | None = "stop" if said.stopped else "length" if full else None
        yield Token(token, certain + (said.rest() if finish == "length" else ""), logprob, finish)
        if finish is not None:
            return
        sequence.append(token)
        logits = engine.step([sequence])[0]


class _Said:
    """The text so far, and how much of it was given out."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._text = ""
        self._given = 0
        self.stopped = False

    def hear(self, text: str) -> str:
        """Takes the whole text so far, and returns what of it has become certain."""
        self._text = text
        places = [place for place in (text.find(s) for s in self._stop) if place >= 0]
        if places:
            self._text = text[: min(places)]
            self.stopped = True
            return self.rest()
        return self._give(len(text.rstrip(_INCOMPLETE)) - self._held())

    def rest(self) -> str:
        """What is left when nothing more comes."""
        return self._give(len(self._text))

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        text = self._text.rstrip(_INCOMPLETE)
        lengths = (n for s in self._stop for n in range(len(s) - 1, 0, -1) if text.endswith(s[:n]))
        return max(lengths, default=0)

    def _give(self, end: int) -> str:
        given, self._given = self._text[self._given : max(end, self._given)], max(end, self._given)
        return given
