"""Which token comes next, and how likely it was.

    greedy     the largest logit, the lowest index among equals (temperature 0)
    sampling   p = softmax(logits / temperature); all tokens, or the fewest most likely ones whose p sums to top_p or
               more; one of them by its share, from a generator of its own seed

Choices are made in fp64, so that a sampled text depends on logits and seed only.
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
        tokens = None if self._sampling.top_p == 1 else likeliest(p, self._sampling.top_p)
        total = np.cumsum(p if tokens is None else p[tokens])
        drawn = np.searchsorted(total, self._random.random() * total[-1], side="right")
        place = min(drawn, np.searchsorted(total, total[-1]))  # a product that rounds up to the sum is the last's
        return int(place if tokens is None else tokens[place])


def likeliest(p: NDArray[np.float64], share: float) -> NDArray[np.int64]:
    """The fewest tokens whose p [V] sums to `share` of the whole or more, likeliest first, the lowest index among
    equals.

    Only tokens that can be among them are sorted: those with less than (1 - share) / 2V of the whole make up less than
    half of what may be left out.
    """
    whole = p.sum()
    candidates = np.flatnonzero(~(p < (1 - share) * whole / (2 * p.size)))
    while True:
        order = candidates[np.argsort(-p[candidates], kind="stable")]
        total = np.cumsum(p[order])
        if candidates.size == p.size or total[-1] >= share * whole:
            return order[: int(np.searchsorted(total, share * whole)) + 1]
        candidates = np.arange(p.size)  # a share so close to 1 that the sums' rounding decides


def log_probability(logits: NDArray[np.float32], token: int) -> float:
    """Log-probability in nats of `token` under logits fp32 [V]: one number of `log_softmax`, to about 1e-6.

    The exponentials are fp32, which is several times as fast; their sum is fp64.
    """
    largest = logits.max()
    total = np.exp(logits - largest).sum(dtype=np.float64)
    return float(np.float64(logits[token]) - np.float64(largest) - np.log(total))


def log_softmax(logits: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities fp64 of logits [..., V]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
