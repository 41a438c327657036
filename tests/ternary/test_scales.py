"""The fixed-order sum against a scalar loop, and its independence of threads and memory layout."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mote.ternary.scales import fixed_order_sum, fixed_order_sum_, fp32_quotient, mean_abs


def scalar_halving(values: np.ndarray) -> np.float32:
    x = [np.float32(v) for v in values]
    while len(x) > 1:
        half = (len(x) + 1) // 2
        x = [x[i] + x[i + half] if i + half < len(x) else x[i] for i in range(half)]
    return x[0] if x else np.float32(0)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 70), seed=st.integers(0, 1000))
def test_sum_is_the_scalar_halving_to_the_bit(n: int, seed: int) -> None:
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(seed)) * 1000
    expected = [scalar_halving(row) for row in x.numpy()]
    assert fixed_order_sum(x).tolist() == [float(v) for v in expected]


def test_sum_differs_from_left_to_right_so_the_order_matters() -> None:
    x = torch.tensor([1e8, 1.0, -1e8, 1.0])
    assert fixed_order_sum(x).item() == 2.0  # (1e8 - 1e8) + (1 + 1)
    assert np.add.accumulate(x.numpy())[-1] == 1.0


def test_sum_has_the_same_bits_on_any_thread_count() -> None:
    x = torch.randn(2, 200_003, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    sums = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            sums.append(fixed_order_sum(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


def test_sum_ignores_strides_and_leaves_its_operand_alone() -> None:
    x = torch.randn(37, 5, generator=torch.Generator().manual_seed(2))
    kept = x.clone()
    assert torch.equal(fixed_order_sum(x.t()), fixed_order_sum(x.t().contiguous()))
    assert torch.equal(x, kept)
    assert torch.equal(fixed_order_sum_(x.t()), fixed_order_sum(kept.t()))
    assert not torch.equal(x, kept)


def test_mean_abs_upcasts_before_it_adds() -> None:
    x = torch.full((1, 4096), -0.01, dtype=torch.bfloat16)
    assert mean_abs(x).dtype == torch.float32
    assert mean_abs(x).item() == x[0, 0].abs().float().item()


@pytest.mark.parametrize("denominator", [3.0, 127, 10.0])
def test_quotient_is_a_rounded_division_not_a_reciprocal(denominator: float) -> None:
    x = torch.linspace(0.1, 50, 4001)
    expected = x.numpy() / np.float32(denominator)
    assert np.array_equal(fp32_quotient(x, denominator).numpy(), expected)
    assert np.array_equal(fp32_quotient(denominator, x).numpy(), np.float32(denominator) / x.numpy())
    reciprocal = x.numpy() * (np.float32(1) / np.float32(denominator))
    assert not np.array_equal(expected, reciprocal)  # the test can tell the two apart
