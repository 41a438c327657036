"""Ninety-five per cent intervals for what an evaluation reports.

    Wilson      k successes of n:  (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),  p = k/n
    bootstrap   the 2.5 and 97.5 percentiles of the means of resamples with replacement, seeded
    average     of S skills, unweighted, each with its own (value v, low l, high h):
                  mean(v) - sqrt(sum (v - l)^2) / S   ...   mean(v) + sqrt(sum (h - v)^2) / S

The last is MOVER (Zou and Donner 2008): it recovers each skill's variance from its own interval, so it
stays inside 0..1, keeps Wilson's asymmetry near 0 and 1, and needs no draw. All three treat questions as
independent; questions about one picture are not quite, so the intervals are a little narrow.
"""

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054
"""The 97.5 percentile of the normal distribution."""


def wilson(k: float, n: int) -> tuple[float, float]:
    """Wilson's score interval (low, high) for k successes of n; (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = k / n, Z_95 * Z_95
    centre = p + z2 / (2 * n)
    half = Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # Rounding must not put the share itself outside, which at k = 0 and k = n is a bound.
    return min(p, max(0.0, (centre - half) / (1 + z2 / n))), max(p, min(1.0, (centre + half) / (1 + z2 / n)))


def bootstrap(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of `values`; (0, 1) when there are none."""
    if not values:
        return 0.0, 1.0
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = data[generator.integers(0, len(data), size=(resamples, len(data)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def average(scores: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Unweighted mean of (value, low, high) triples, with MOVER's interval; (0, 0, 1) when there are none."""
    if not scores:
        return 0.0, 0.0, 1.0
    n = len(scores)
    value = sum(v for v, _, _ in scores) / n
    below = math.sqrt(sum((v - low) ** 2 for v, low, _ in scores)) / n
    above = math.sqrt(sum((high - v) ** 2 for v, _, high in scores)) / n
    return value, max(0.0, value - below), min(1.0, value + above)
