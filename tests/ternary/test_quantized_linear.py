"""The numbers of one quantised linear, operation by operation, and the straight-through function."""

import numpy as np
import pytest
import torch

from mote.ternary.activations import quantize_activation, quantize_activation_grouped
from mote.ternary.format import WeightFormat
from mote.ternary.linear import quantized_linear, straight_through, weight_only_linear
from mote.ternary.quantize import dequantize_weight, quantize_weight

FORMATS = {
    "tensor": WeightFormat(),
    "row": WeightFormat(granularity="row"),
    "group": WeightFormat(granularity="group", group=16),
    "int8": WeightFormat(quantizer="int8", scale="absmax", granularity="row"),
    "int8_group": WeightFormat(
        quantizer="int8", scale="absmax", granularity="group", group=16, activation="int8_group"
    ),
}


def quantized(x: torch.Tensor, fmt: WeightFormat) -> tuple[torch.Tensor, torch.Tensor]:
    grouped = fmt.activation == "int8_group"
    return quantize_activation_grouped(x, fmt.group) if grouped else quantize_activation(x)


def reference(x_q: np.ndarray, s: np.ndarray, q: np.ndarray, scale: np.ndarray, fmt: WeightFormat) -> np.ndarray:
    """The specification in numpy: every line is one fp32 rounding per element."""
    x_q, q = x_q.astype(np.int64), q.astype(np.int64)
    if fmt.granularity != "group":
        both = s[:, None] * (scale if fmt.granularity == "tensor" else scale[None, :])
        return (x_q @ q.T).astype(np.float32) * both
    y = np.zeros((x_q.shape[0], q.shape[0]), dtype=np.float32)
    for g in range(scale.shape[1]):
        columns = slice(g * fmt.group, (g + 1) * fmt.group)
        acc = (x_q[:, columns] @ q[:, columns].T).astype(np.float32)
        y = y + acc * (scale[None, :, g] * s[:, g, None] if s.ndim == 2 else scale[None, :, g])
    return y if s.ndim == 2 else y * s[:, None]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("tokens", "outputs", "inputs"), [(1, 1, 1), (1, 7, 33), (5, 1, 16), (9, 65, 100), (3, 4, 1100)]
)
def test_numbers_are_those_of_the_specification(name: str, tokens: int, outputs: int, inputs: int) -> None:
    fmt = FORMATS[name]
    generator = torch.Generator().manual_seed(7)
    x_q, s = quantized(torch.randn(tokens, inputs, generator=generator) * 3, fmt)
    q, scale = quantize_weight(torch.randn(outputs, inputs, generator=generator), fmt)
    y = quantized_linear(x_q, s, q, scale, fmt)
    assert y.dtype == torch.float32
    assert np.array_equal(y.numpy(), reference(x_q.numpy(), s.numpy(), q.numpy(), scale.numpy(), fmt))


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_are_close_to_the_unquantised_product(name: str) -> None:
    generator = torch.Generator().manual_seed(8)
    x, w = torch.randn(6, 256, generator=generator), torch.randn(10, 256, generator=generator)
    q, scale = quantize_weight(w, FORMATS[name])
    y = quantized_linear(*quantized(x, FORMATS[name]), q, scale, FORMATS[name])
    exact = x.double() @ dequantize_weight(q, scale, FORMATS[name]).double().t()
    assert ((y - exact).norm() / exact.norm()).item() < 0.01  # what INT8 activations cost


@pytest.mark.parametrize("name", FORMATS)
def test_weight_only_keeps_activations_unrounded(name: str) -> None:
    generator = torch.Generator().manual_seed(9)
    x, w = torch.randn(6, 100, generator=generator), torch.randn(10, 100, generator=generator)
    q, scale = quantize_weight(w, FORMATS[name])
    exact = x.double() @ dequantize_weight(q, scale, FORMATS[name]).double().t()
    with torch.autocast("cpu", torch.bfloat16):
        y = weight_only_linear(x, q, scale, FORMATS[name])
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_straight_through_is_exactly_q(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(10)
    x = (torch.randn(50, 50, generator=generator)).to(dtype).requires_grad_()
    q = torch.randint(-1, 2, (50, 50), generator=generator).to(dtype) * 0.37
    out = straight_through(x, q)
    assert torch.equal(out, q)
    dy = torch.randn(50, 50, generator=generator).to(dtype)
    (dx,) = torch.autograd.grad(out, x, dy)
    assert torch.equal(dx, dy)


def test_the_detach_trick_is_not_exact_which_is_why_the_function_exists() -> None:
    x = torch.randn(50, 50, generator=torch.Generator().manual_seed(11)).to(torch.bfloat16)
    q = torch.full_like(x, 0.37)
    assert not torch.equal(x + (q - x), q)
