"""Choices are those of the plain definition, which sorts everything, without its cost."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mote.run.sampling import Sampler, Sampling, log_probability, log_softmax


def plain(logits: np.ndarray, sampling: Sampling, draws: int) -> list[int]:
    """The definition: all tokens in the vocabulary's order, or the fewest likeliest that sum to top_p in theirs."""
    p = np.exp(log_softmax(logits.astype(np.float64) / sampling.temperature))
    order, kept = np.arange(p.size), p.size
    if sampling.top_p < 1:
        order = np.argsort(-p, kind="stable")
        kept = int(np.searchsorted(np.cumsum(p[order]), sampling.top_p * p.sum())) + 1
    total = np.cumsum(p[order])[:kept]
    random = np.random.default_rng(sampling.seed)
    return [int(order[np.searchsorted(total, random.random() * total[-1], side="right")]) for _ in range(draws)]


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 300),
    spread=st.sampled_from([0.0, 0.01, 1.0, 5.0, 100.0]),
    ties=st.booleans(),
    temperature=st.floats(0.05, 20),
    top_p=st.one_of(st.floats(1e-12, 1), st.sampled_from([1e-300, 0.5, 0.9, 0.999, 1 - 1e-9, 1 - 2**-53, 1.0])),
)
@settings(max_examples=200, deadline=None)
def test_draws_are_those_of_a_full_sort(
    seed: int, size: int, spread: float, ties: bool, temperature: float, top_p: float
) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=size) * spread
    logits = (np.round(logits) if ties else logits).astype(np.float32)
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    sampler = Sampler(sampling)
    assert [sampler(logits) for _ in range(8)] == plain(logits, sampling, 8)


def test_only_what_can_be_drawn_is_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = (np.random.default_rng(0).normal(size=20_000) * 4).astype(np.float32)
    sizes: list[int] = []
    real = np.argsort

    def argsort(values: Any, **options: Any) -> Any:
        sizes.append(len(values))
        return real(values, **options)

    monkeypatch.setattr(np, "argsort", argsort)
    Sampler(Sampling(temperature=1.0, seed=1))(logits)
    assert sizes == []
    Sampler(Sampling(temperature=1.0, top_p=0.9, seed=1))(logits)
    assert len(sizes) == 1
    assert sizes[0] < 4000


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = np.array([-np.inf, 2, -np.inf, 2, -np.inf], dtype=np.float32)
    for top_p in (0.6, 1.0):
        assert {Sampler(Sampling(temperature=1.0, top_p=top_p, seed=seed))(logits) for seed in range(30)} == {1, 3}


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_log_probability_is_one_of_log_softmax_at_a_fraction_of_its_memory(spread: float) -> None:
    logits = (np.random.default_rng(0).normal(size=50_000) * spread).astype(np.float32)
    expected = log_softmax(logits)
    for token in (0, 7, int(logits.argmax())):
        assert log_probability(logits, token) == pytest.approx(expected[token], abs=2e-6, rel=1e-7)
    tracemalloc.start()
    log_probability(logits, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * logits.nbytes  # log_softmax takes four
