"""Intervals against published values, and their behaviour at the edges."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mote.evaluate.intervals import average, bootstrap, wilson


def test_wilson_agrees_with_published_values() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for k, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 400), st.integers(0, 400))
def test_wilson_holds_the_share_and_mirrors(k: int, n: int) -> None:
    k = min(k, n)
    low, high = wilson(k, n)
    assert 0 <= low <= high <= 1
    if n:
        assert low <= k / n <= high
        mirrored = wilson(n - k, n)
        assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


def test_bootstrap_is_seeded_and_near_the_normal_interval() -> None:
    values = [i % 10 / 9 for i in range(400)]
    low, high = bootstrap(values, seed=1)
    assert (low, high) == bootstrap(values, seed=1)
    assert (low, high) != bootstrap(values, seed=2)
    spread = math.sqrt(sum((v - 0.5) ** 2 for v in values) / 400) / 20 * 1.96
    assert (low, high) == pytest.approx((0.5 - spread, 0.5 + spread), abs=0.004)
    assert bootstrap([]) == (0.0, 1.0)
    assert bootstrap([0.25, 0.25]) == (0.25, 0.25)


def test_average_is_unweighted_and_narrower_than_its_parts() -> None:
    triples = [(0.5, *wilson(50, 100)), (0.9, *wilson(900, 1000)), (0.0, *wilson(0, 30))]
    value, low, high = average(triples)
    assert value == pytest.approx((0.5 + 0.9 + 0.0) / 3)
    assert 0 < low < value < high < 1
    assert average([(0.4, 0.3, 0.5)]) == pytest.approx((0.4, 0.3, 0.5))
    half = average([(0.4, 0.3, 0.5)] * 4)
    assert half == pytest.approx((0.4, 0.35, 0.45))
    assert average([]) == (0.0, 0.0, 1.0)
