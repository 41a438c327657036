"""Round to nearest against its definition, weight by weight, with the scale as it is stored."""

import numpy as np
import pytest
import torch

from mote.errors import FormatError
from mote.ternary.format import WeightFormat
from mote.ternary.round_to_nearest import round_to_nearest


def _format(quantizer, group):
    return WeightFormat(quantizer=quantizer, scale="absmax", granularity="group", group=group, activation="int8_group")


def _naive(w, group, level):
    """Equations of the module, group by group in numpy's fp32; bf16 is the upper half of fp32, to nearest even."""
    rows, cols = w.shape
    q = np.zeros((rows, cols), dtype=np.int8)
    scale = np.zeros((rows, -(-cols // group)), dtype=np.float32)
    for n in range(rows):
        for g, start in enumerate(range(0, cols, group)):
            part = w[n, start : start + group].astype(np.float32)
            exact = max(np.abs(part).max(), np.float32(1e-5)) / np.float32(level)
            bits = int(np.float32(exact).view(np.uint32))
            bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
            scale[n, g] = np.uint32(bits).view(np.float32)
            inverse = np.float32(1) / scale[n, g]
            q[n, start : start + group] = np.clip(np.round(part * inverse), -level, level)
    return q, scale


@pytest.mark.parametrize(("quantizer", "level"), [("int4", 7), ("int8", 127)])
@pytest.mark.parametrize(("rows", "cols", "group"), [(1, 1, 32), (5, 64, 64), (70, 100, 32), (3, 129, 128)])
def test_equals_the_definition(quantizer, level, rows, cols, group):
    w = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows)) * 0.05
    w[0, 0] = 0.0
    if rows > 2:
        w[2] = 0.0  # the floor of the scale
    q, scale = round_to_nearest(w, _format(quantizer, group))
    expected_q, expected_scale = _naive(w.numpy(), group, level)
    assert np.array_equal(q.numpy(), expected_q)
    assert np.array_equal(scale.numpy(), expected_scale)
    assert torch.equal(scale, scale.to(torch.bfloat16).float())
    assert int(q.abs().max()) <= level


def test_many_rows_are_the_same_as_few():
    w = torch.randn(700, 512, generator=torch.Generator().manual_seed(1))  # more than one piece
    q, scale = round_to_nearest(w.to(torch.bfloat16), _format("int4", 64))
    again_q, again_scale = round_to_nearest(w.to(torch.bfloat16)[650:].float(), _format("int4", 64))
    assert torch.equal(q[650:], again_q)
    assert torch.equal(scale[650:], again_scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(bad):
    w = torch.ones(4, 40)
    w[3, 39] = bad
    with pytest.raises(FormatError, match="NaN or Inf"):
        round_to_nearest(w, _format("int8", 32))


def test_other_formats_are_refused():
    with pytest.raises(FormatError, match="round to nearest"):
        round_to_nearest(torch.ones(4, 4), WeightFormat())
