"""Round to nearest against its definition, weight by weight, with the scale as it is stored."""

import numpy as np
import pytest
import torch

from mote.errors import FormatError
from mote.ternary.format import WeightFormat
from mote.ternary.integers import dequantize_integers
from mote.ternary.round_to_nearest import round_to_nearest


def _format(quantizer, group, **settings):
    settings = {"scale": "absmax", "granularity": "group", "activation": "int8_group", **settings}
    return WeightFormat(quantizer=quantizer, group=group, **settings)


def _bf16(value):
    """The upper half of an fp32, to nearest even."""
    bits = int(np.float32(value).view(np.uint32))
    return np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def _naive(w, group, level):
    """Equations of the module, group by group in numpy's fp32."""
    rows, cols = w.shape
    q = np.zeros((rows, cols), dtype=np.int8)
    scale = np.zeros((rows, -(-cols // group)), dtype=np.float32)
    for n in range(rows):
        for g, start in enumerate(range(0, cols, group)):
            part = w[n, start : start + group].astype(np.float32)
            scale[n, g] = _bf16(max(np.abs(part).max(), np.float32(1e-5)) / np.float32(level))
            inverse = np.float32(1) / scale[n, g]
            q[n, start : start + group] = np.clip(np.round(part * inverse), -level, level)
    return q, scale


def _naive_with_zero_points(w, group, bits):
    rows, cols = w.shape
    top = 2**bits - 1
    code = np.zeros((rows, cols), dtype=np.int32)
    scale, zero = (np.zeros((rows, -(-cols // group)), dtype=np.float32) for _ in range(2))
    for n in range(rows):
        for g, start in enumerate(range(0, cols, group)):
            part = w[n, start : start + group].astype(np.float32)
            low, high = min(part.min(), np.float32(0)), max(part.max(), np.float32(0))
            scale[n, g] = _bf16(max(high - low, np.float32(1e-5)) / np.float32(top))
            inverse = np.float32(1) / scale[n, g]
            zero[n, g] = np.clip(np.round(-low * inverse), 0, top)
            code[n, start : start + group] = np.clip(np.round(part * inverse) + zero[n, g], 0, top)
    return code, scale, zero


@pytest.mark.parametrize(("quantizer", "level"), [("int2", 1), ("int3", 3), ("int4", 7), ("int6", 31), ("int8", 127)])
@pytest.mark.parametrize(("rows", "cols", "group"), [(1, 1, 32), (5, 64, 64), (70, 100, 32), (3, 129, 128)])
def test_equals_the_definition(quantizer, level, rows, cols, group):
    w = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows)) * 0.05
    w[0, 0] = 0.0
    if rows > 2:
        w[2] = 0.0  # the floor of the scale
    q, scale, zero = round_to_nearest(w, _format(quantizer, group))
    assert zero is None
    expected_q, expected_scale = _naive(w.numpy(), group, level)
    assert np.array_equal(q.numpy(), expected_q)
    assert np.array_equal(scale.numpy(), expected_scale)
    assert torch.equal(scale, scale.to(torch.bfloat16).float())
    assert int(q.abs().max()) <= level


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize(("rows", "cols", "group"), [(1, 1, 32), (5, 64, 64), (70, 100, 32), (3, 129, 128)])
def test_zero_points_equal_the_definition(bits, rows, cols, group):
    generator = torch.Generator().manual_seed(rows)
    w = torch.randn(rows, cols, generator=generator) * 0.05 + torch.randn(rows, 1, generator=generator) * 0.1
    if rows > 2:
        w[2] = 0.0
    fmt = _format(f"int{bits}", group, symmetric=False)
    found = round_to_nearest(w, fmt)
    code, scale, zero = _naive_with_zero_points(w.numpy(), group, bits)
    assert np.array_equal(found.q.int().numpy() + 2 ** (bits - 1), code)
    assert np.array_equal(found.scale.numpy(), scale)
    assert np.array_equal(found.zero.numpy(), zero)
    step = found.scale.repeat_interleave(group, 1)[:, :cols]
    assert bool(((dequantize_integers(found, fmt) - w).abs() <= (1.01 + 2**bits / 512) * step).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_many_rows_are_the_same_as_few(symmetric):
    w = torch.randn(700, 512, generator=torch.Generator().manual_seed(1))  # more than one piece
    fmt = _format("int4", 64, symmetric=symmetric)
    all_rows, some = (
        round_to_nearest(part, fmt) for part in (w.to(torch.bfloat16), w.to(torch.bfloat16)[650:].float())
    )
    for mine, again in zip(all_rows, some, strict=True):
        assert mine is again is None or torch.equal(mine[650:], again)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(bad):
    w = torch.ones(4, 40)
    w[3, 39] = bad
    with pytest.raises(FormatError, match="NaN or Inf"):
        round_to_nearest(w, _format("int8", 32))


def test_other_formats_are_refused():
    for fmt in (WeightFormat(), _format("int4", 64, scale="given"), _format("ternary", 64)):
        with pytest.raises(FormatError, match="round to nearest"):
            round_to_nearest(torch.ones(4, 4), fmt)
