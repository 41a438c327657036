"""Weight quantisers against a plain numpy version of the equations."""

from typing import Any

import numpy as np
import pytest
import torch

from mote.errors import FormatError
from mote.ternary.format import WeightFormat
from mote.ternary.quantize import dequantize_weight, quantize_weight
from mote.ternary.scales import fixed_order_sum

TENSOR, ROW = WeightFormat(), WeightFormat(granularity="row")
GROUP = WeightFormat(granularity="group", group=16)


def weights(*shape: int, seed: int = 0, spread: float = 0.02) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread


def absmean(block: np.ndarray) -> tuple[np.ndarray, np.float32]:
    total = fixed_order_sum(torch.from_numpy(np.abs(block).reshape(1, -1))).numpy()[0]
    gamma = max(total / np.float32(block.size), np.float32(1e-5))
    return np.clip(np.rint(block * (np.float32(1) / gamma)), -1, 1).astype(np.int8), gamma


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 5), (64, 48), (65, 37), (700, 600)])
def test_ternary_absmean_per_tensor(rows: int, cols: int) -> None:
    w = weights(2, rows, cols)
    q, scale = quantize_weight(w, TENSOR)
    assert (q.dtype, scale.shape) == (torch.int8, (2,))
    for e in range(2):
        expected_q, expected_scale = absmean(w[e].numpy())
        assert np.array_equal(q[e].numpy(), expected_q)
        assert scale[e].item() == expected_scale


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (5, 40), (700, 600)])
def test_ternary_absmean_per_row(rows: int, cols: int) -> None:
    w = weights(rows, cols)
    q, scale = quantize_weight(w, ROW)
    assert scale.shape == (rows,)
    for n in range(rows):
        expected_q, expected_scale = absmean(w[n].numpy())
        assert np.array_equal(q[n].numpy(), expected_q)
        assert scale[n].item() == expected_scale


@pytest.mark.parametrize("cols", [1, 15, 16, 17, 48, 50])
def test_ternary_absmean_per_group_with_a_short_last_group(cols: int) -> None:
    w = weights(2, 5, cols)
    q, scale = quantize_weight(w, GROUP)
    assert scale.shape == (2, 5, -(-cols // 16))
    for e in range(2):
        for n in range(5):
            for g in range(scale.shape[-1]):
                columns = slice(16 * g, 16 * g + 16)
                expected_q, expected_scale = absmean(w[e, n, columns].numpy())
                assert np.array_equal(q[e, n, columns].numpy(), expected_q)
                assert scale[e, n, g].item() == expected_scale


def test_integers_and_scale_are_pinned() -> None:
    """Golden values: another machine, or a refactoring, must give these."""
    w = (
        torch.arange(-9, 10, dtype=torch.float32).reshape(1, 19).square()
        * 0.001
        * torch.tensor([-1.0, 1.0]).repeat(10)[:19]
    )
    q, scale = quantize_weight(w, TENSOR)
    assert scale.item() == float(np.float32(0.03))
    assert q.tolist() == [[-1, 1, -1, 1, -1, 1, 0, 0, 0, 0, 0, 0, 0, 1, -1, 1, -1, 1, -1]]


def test_halves_round_to_even_and_large_values_clip() -> None:
    w = torch.tensor([[0.5, -0.5, 1.5, -1.5]])  # mean|w| is 1, so w is its own quotient
    q, scale = quantize_weight(w, TENSOR)
    assert scale.item() == 1.0
    assert q.tolist() == [[0, 0, 1, -1]]


def test_bf16_weights_are_upcast_first() -> None:
    w = weights(3, 100, 70).to(torch.bfloat16)
    for fmt in (TENSOR, ROW, GROUP):
        low, high = quantize_weight(w, fmt), quantize_weight(w.float(), fmt)
        assert torch.equal(low.q, high.q)
        assert torch.equal(low.scale, high.scale)


@pytest.mark.parametrize("fmt", [TENSOR, ROW, GROUP, WeightFormat(quantizer="int4", scale="absmax")])
def test_strides_threads_and_stacking_do_not_change_a_bit(fmt: WeightFormat) -> None:
    w = weights(3, 600, 530)
    whole = quantize_weight(w, fmt)
    strided = quantize_weight(w.transpose(1, 2).contiguous().transpose(1, 2), fmt)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        one = quantize_weight(w[1], fmt)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole.q, strided.q)
    assert torch.equal(whole.scale, strided.scale)
    assert torch.equal(whole.q[1], one.q)
    assert torch.equal(whole.scale[1], one.scale)


def test_zero_matrix_is_all_zeros_at_the_floor() -> None:
    q, scale = quantize_weight(torch.zeros(2, 3, 4), TENSOR)
    assert not q.any()
    assert scale.tolist() == [float(np.float32(1e-5))] * 2


@pytest.mark.parametrize("quantizer", ["int2", "int3", "int4", "int6", "int8"])
def test_absmax_grids_reach_their_largest_level(quantizer: str) -> None:
    fmt = WeightFormat(quantizer=quantizer, scale="absmax", granularity="row")  # type: ignore[arg-type]
    w = weights(6, 200)
    q, scale = quantize_weight(w, fmt)
    peak = w.abs().amax(-1).numpy()
    assert np.array_equal(scale.numpy(), peak / np.float32(fmt.max_level))
    assert q.abs().amax(-1).tolist() == [fmt.max_level] * 6
    error = (dequantize_weight(q, scale, fmt) - w).abs().amax(-1)
    assert (error <= scale * 0.5001).all()


def test_binary_has_no_zero() -> None:
    fmt = WeightFormat(quantizer="binary")
    q, scale = quantize_weight(torch.tensor([[0.0, -0.25, 0.75, -0.0]]), fmt)
    assert q.tolist() == [[1, -1, 1, 1]]
    assert scale.item() == 0.25


def test_lloyd_max_reaches_the_optimum_for_normal_weights() -> None:
    w = weights(1, 400, 400, spread=1.0)
    fmt = WeightFormat(scale="lloyd_max")
    q, scale = quantize_weight(w, fmt)
    assert scale.item() == pytest.approx(1.224, rel=0.01)
    chosen = w[q != 0].abs()
    assert scale.item() == pytest.approx(chosen.mean().item(), rel=1e-3)  # refitting changes nothing
    assert torch.equal(q != 0, w.abs() > scale / 2)  # neither does assigning again


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
def test_lloyd_max_errs_less_than_absmean(granularity: str) -> None:
    group = 64 if granularity == "group" else 0
    w = weights(2, 40, 200)
    errors = []
    for rule in ("lloyd_max", "absmean"):
        fmt = WeightFormat(scale=rule, granularity=granularity, group=group)  # type: ignore[arg-type]
        errors.append((dequantize_weight(*quantize_weight(w, fmt), fmt) - w).norm() / w.norm())
    assert errors[0] < 0.9 * errors[1]


def test_lloyd_max_beats_absmax_on_four_bits() -> None:
    w = weights(2, 300, 300)
    errors = [
        (dequantize_weight(*quantize_weight(w, fmt), fmt) - w).norm()
        for fmt in (WeightFormat(quantizer="int4", scale="lloyd_max"), WeightFormat(quantizer="int4", scale="absmax"))
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("fmt", [TENSOR, ROW, GROUP])
def test_dequantize_rounds_once(fmt: WeightFormat) -> None:
    w = weights(2, 6, 40)
    q, scale = quantize_weight(w, fmt)
    exact = dequantize_weight(q, scale, fmt)
    assert torch.equal(dequantize_weight(q, scale, fmt, torch.bfloat16), exact.to(torch.bfloat16))
    again = quantize_weight(exact, WeightFormat(scale="absmax", granularity=fmt.granularity, group=fmt.group))
    assert torch.equal(again.q, q)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("fmt", [TENSOR, ROW, GROUP, WeightFormat(scale="lloyd_max"), WeightFormat(scale="absmax")])
def test_weights_that_are_not_finite_are_refused(bad: float, fmt: WeightFormat) -> None:
    w = weights(2, 8, 40)
    w[1, 3, 39] = bad
    with pytest.raises(FormatError, match="NaN, Inf"):
        quantize_weight(w, fmt)


@pytest.mark.parametrize("settings", [{"scale": "given"}, {"symmetric": False, "granularity": "group", "group": 32}])
def test_what_is_quantised_after_training_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="no grid of training"):
        quantize_weight(torch.ones(2, 64), WeightFormat(**{"quantizer": "int4", "scale": "absmax", **settings}))


def test_what_has_no_integers_is_refused() -> None:
    with pytest.raises(FormatError, match="'none' has no integers"):
        quantize_weight(weights(2, 2), WeightFormat(quantizer="none"))
    with pytest.raises(FormatError, match="'absmean' is not defined for int4"):
        quantize_weight(weights(2, 2), WeightFormat(quantizer="int4"))
    for wrong in (torch.zeros(3), torch.zeros(0, 4), torch.zeros(2, 2, dtype=torch.int8)):
        with pytest.raises(FormatError, match="non-empty floating-point"):
            quantize_weight(wrong, TENSOR)
