"""Grouped linear: exact numbers forwards, the naive composition's gradients backwards."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from mote.ternary.activations import quantize_activation, quantize_activation_grouped
from mote.ternary.cache import QuantizedCache
from mote.ternary.format import FULL_PRECISION, WeightFormat
from mote.ternary.linear import grouped_linear, quantized_linear, straight_through
from mote.ternary.quantize import dequantize_weight, quantize_weight

FORMATS = {
    "tensor": WeightFormat(),
    "row": WeightFormat(granularity="row"),
    "group": WeightFormat(granularity="group", group=16, scale="lloyd_max"),
    "binary": WeightFormat(quantizer="binary"),
    "int8": WeightFormat(quantizer="int8", scale="absmax"),
    "int8_group": WeightFormat(
        quantizer="int4", scale="absmax", granularity="group", group=16, activation="int8_group"
    ),
    "weight_only": WeightFormat(activation="none"),
    "weight_only_group": WeightFormat(granularity="group", group=16, activation="none"),
    "activation_only": WeightFormat(quantizer="none"),
    "none": FULL_PRECISION,
}
EXACT = ("tensor", "row", "group", "binary", "int8", "int8_group")
OFFSETS = [0, 5, 5, 16, 17]  # the second expert is empty


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(12)
    x = torch.randn(17, 50, generator=generator).to(dtype).requires_grad_()
    w = (torch.randn(4, 21, 50, generator=generator) * 0.02).requires_grad_()
    return x, w, torch.randn(17, 21, generator=generator)


def naive(x: Tensor, w: Tensor, fmt: WeightFormat) -> Tensor:
    """Fake quantisation through `straight_through` and one plain linear per expert."""
    if fmt.quantizer != "none":
        w = straight_through(w, dequantize_weight(*quantize_weight(w, fmt), fmt))
    if fmt.activation == "int8":
        x_q, s = quantize_activation(x)
        x = straight_through(x, (x_q.float() * s[:, None]).to(x.dtype))
    if fmt.activation == "int8_group":
        x_q, s = quantize_activation_grouped(x, fmt.group)
        x = straight_through(x, x_q.float() * s.repeat_interleave(fmt.group, -1)[:, : x.shape[1]])
    rows = zip(OFFSETS[:-1], OFFSETS[1:], w.unbind(0), strict=True)
    return torch.cat([linear(x[a:b].float(), w_NK) for a, b, w_NK in rows])


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_those_of_the_naive_composition(name: str) -> None:
    x, w, dy = operands()
    y = grouped_linear(x, OFFSETS, w, QuantizedCache(), FORMATS[name])
    expected = naive(x, w, FORMATS[name])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = torch.autograd.grad(y, (x, w), dy), torch.autograd.grad(expected, (x, w), dy)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-5)
    assert not ours[1][1].any()  # the empty expert


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_under_bf16_autocast(name: str) -> None:
    x, w, dy = operands()
    with torch.autocast("cpu", torch.bfloat16):
        y = grouped_linear(x, OFFSETS, w, QuantizedCache(), FORMATS[name])
    assert y.dtype == torch.float32
    ours = torch.autograd.grad(y, (x, w), dy)
    assert [g.dtype for g in ours] == [torch.float32] * 2
    theirs = torch.autograd.grad(naive(x, w, FORMATS[name]), (x, w), dy)
    for mine, other in zip(ours, theirs, strict=True):
        assert ((mine - other).norm() / other.norm()).item() < 0.01


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_the_numbers_are_the_specification(name: str, dtype: torch.dtype) -> None:
    x, w, _ = operands(dtype)
    fmt = FORMATS[name]
    x_q, s = quantize_activation_grouped(x, fmt.group) if fmt.activation == "int8_group" else quantize_activation(x)
    q, scale = quantize_weight(w, fmt)
    segments = [slice(a, b) for a, b in pairwise(OFFSETS)]
    expected = torch.cat([quantized_linear(x_q[r], s[r], q[e], scale[e], fmt) for e, r in enumerate(segments)])
    with torch.no_grad():
        assert torch.equal(grouped_linear(x, OFFSETS, w, QuantizedCache(), fmt), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(grouped_linear(x, OFFSETS, w, QuantizedCache(), fmt), expected)
    with torch.autocast("cpu", torch.bfloat16):
        training = grouped_linear(x, OFFSETS, w, QuantizedCache(), fmt)
    assert torch.equal(training, expected) == (fmt.granularity != "group")


@pytest.mark.parametrize("name", FORMATS)
def test_gradient_of_one_operand_alone(name: str) -> None:
    x, w, dy = operands()
    both = torch.autograd.grad(grouped_linear(x, OFFSETS, w, QuantizedCache(), FORMATS[name]), (x, w), dy)
    only_x = grouped_linear(x, OFFSETS, w.detach(), QuantizedCache(), FORMATS[name])
    only_w = grouped_linear(x.detach(), OFFSETS, w, QuantizedCache(), FORMATS[name])
    assert torch.equal(torch.autograd.grad(only_x, x, dy)[0], both[0])
    assert torch.equal(torch.autograd.grad(only_w, w, dy)[0], both[1])


def test_bf16_activations_get_bf16_gradients() -> None:
    x, w, dy = operands(torch.bfloat16)
    y = grouped_linear(x, OFFSETS, w, QuantizedCache(), WeightFormat())
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    assert (y.dtype, dx.dtype, dw.dtype) == (torch.float32, torch.bfloat16, torch.float32)


def test_no_tokens_at_all() -> None:
    w = torch.ones(2, 3, 8, requires_grad=True)
    x = torch.zeros(0, 8, requires_grad=True)
    y = grouped_linear(x, [0, 0, 0], w, QuantizedCache(), WeightFormat())
    dx, dw = torch.autograd.grad(y.sum(), (x, w))
    assert (y.shape, dx.shape) == ((0, 3), (0, 8))
    assert not dw.any()


@pytest.mark.parametrize("offsets", [[0, 17], [0, 5, 5, 16, 16], [1, 5, 5, 16, 17], [0, 9, 5, 16, 17]])
def test_offsets_must_cover_the_tokens(offsets: list[int]) -> None:
    x, w, _ = operands()
    with pytest.raises(ValueError, match="do not cut 17 tokens into 4 experts"):
        grouped_linear(x, offsets, w, QuantizedCache(), WeightFormat())


def test_second_derivatives_are_refused() -> None:
    x, w, dy = operands()
    y = grouped_linear(x, OFFSETS, w, QuantizedCache(), WeightFormat())
    (dx,) = torch.autograd.grad(y, x, dy.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_recomputation_in_checkpointing_gives_the_same_gradients() -> None:
    x, w, dy = operands()
    cache = QuantizedCache()
    plain = torch.autograd.grad(grouped_linear(x, OFFSETS, w, cache, WeightFormat()), (x, w), dy)
    y = checkpoint(grouped_linear, x, OFFSETS, w, cache, WeightFormat(), use_reentrant=False)
    again = torch.autograd.grad(y, (x, w), dy)
    assert torch.equal(plain[0], again[0])
    assert torch.equal(plain[1], again[1])
