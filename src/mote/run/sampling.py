"""Which token comes next, and how likely it was.

    greedy     the largest logit, the lowest index among equals (temperature 0)
    sampling   p = softmax(logits / temperature); the fewest most likely tokens whose p sums to top_p or more; one of
               them by its share, from a generator of its own seed

All in fp64, so that a sampled text depends on logits and seed only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mote.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose. temperature: 0 is greedy. top_p: 1 keeps all tokens. seed: of the draws of one answer."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise EngineError(f"temperature {self.temperature:g} must be 0 or more, top_p {self.top_p:g} in (0, 1]")


class Sampler:
    """Draws the tokens of one answer, one after the other."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """The next token under logits [V]."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        p = np.exp(log_softmax(logits.astype(np.float64) / self._sampling.temperature))
        order = np.argsort(-p, kind="stable")
        total = np.cumsum(p[order])
        kept = int(np.searchsorted(total, self._sampling.top_p * total[-1])) + 1
        place = int(np.searchsorted(total[:kept], self._random.random() * total[kept - 1], side="right"))
        return int(order[min(place, kept - 1)])


def log_softmax(logits: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities fp64 of logits [..., V]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
