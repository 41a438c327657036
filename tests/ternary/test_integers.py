"""What a library quantised, packed and unpacked: the same weights to the bit, and clear refusals."""

import pytest
import torch

from mote.errors import FormatError
from mote.ternary.activations import quantize_activation_grouped
from mote.ternary.format import WeightFormat
from mote.ternary.integers import dequantize_integers, given_integers, pack_linear, unpack_integers
from mote.ternary.linear import quantized_linear


def _format(bits: int, group: int = 64, *, symmetric: bool = False) -> WeightFormat:
    return WeightFormat(
        quantizer=f"int{bits}",  # type: ignore[arg-type]
        scale="given",
        granularity="group",
        group=group,
        activation="int8_group",
        symmetric=symmetric,
    )


def _given(bits: int, rows: int, cols: int, group: int, *, symmetric: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(bits * rows + cols)
    half = 1 << (bits - 1)
    low, high = (-half + (bits == 8), half) if symmetric else (0, 2 * half)
    codes = torch.randint(low, high, (rows, cols), generator=generator, dtype=torch.int16)
    codes[-1, -1] = high - 1
    codes[0, 0] = low
    shape = (rows, -(-cols // group))
    scale = (torch.rand(shape, generator=generator) * 0.1).bfloat16()
    zero = (torch.randn(shape, generator=generator) + half).bfloat16()
    return [codes, scale] if symmetric else [codes, scale, zero]


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "cols", "group"), [(1, 1, 32), (70, 100, 32), (65, 192, 64), (3, 300, 128)])
def test_packed_weights_are_those_of_the_library(bits: int, symmetric: bool, rows: int, cols: int, group: int) -> None:
    fmt = _format(bits, group, symmetric=symmetric)
    codes, scale, *rest = _given(bits, rows, cols, group, symmetric=symmetric)
    packed = pack_linear(codes, scale.float(), *([z.double() for z in rest] or [None]), fmt)
    assert packed.packed.dtype == torch.uint8
    assert packed.scale.dtype == torch.bfloat16
    assert packed.scale.shape == (-(-rows // 64), -(-cols // group), 64)
    wide = [t.float().repeat_interleave(group, 1)[:, :cols] for t in (scale, *rest)]
    expected = codes.float() * wide[0] if symmetric else (codes.float() - wide[1]) * wide[0]
    again = unpack_integers(packed, rows, cols, fmt)
    assert torch.equal(dequantize_integers(again, fmt), expected)
    if not symmetric:
        assert packed.zero is not None
        assert packed.zero.shape == packed.scale.shape
        assert int(again.q.min()) == -(1 << (bits - 1))


def test_products_with_zero_points_are_those_of_the_dequantised_operands() -> None:
    fmt = _format(3, 32)
    codes, scale, zero = _given(3, 40, 100, 32, symmetric=False)
    weight = given_integers(codes, scale, zero, fmt)
    x_q, s = quantize_activation_grouped(torch.randn(7, 100, generator=torch.Generator().manual_seed(1)) + 1, 32)
    y = quantized_linear(x_q, s, weight.q, weight.scale, fmt, weight.zero)
    x = x_q.double() * s.double().repeat_interleave(32, 1)[:, :100]
    exact = x @ dequantize_integers(weight, fmt).double().t()
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.full((3, 64), 8)}, r"int3: a code is not in 0\.\.7"),
        ({"codes": torch.full((3, 64), -1)}, r"int3: a code is not in 0\.\.7"),
        ({"codes": torch.ones(3, 64)}, "give integers"),
        ({"codes": torch.ones(64, dtype=torch.int8)}, "give integers"),
        ({"scale": torch.ones(3, 2)}, r"scales are \[3, 2\], not \[3, 1\]"),
        ({"scale": torch.full((3, 1), 0.1)}, "scales are not finite numbers of bfloat16"),
        ({"zero": torch.full((3, 1), float("nan"))}, "zero points are not finite"),
        ({"zero": torch.full((3, 1), 3.14159)}, "zero points are not finite numbers of bfloat16"),
        ({"zero": None}, "zero points are missing"),
        ({"fmt": _format(3, symmetric=True)}, "zero points with a symmetric format"),
        ({"fmt": WeightFormat(quantizer="int3", scale="absmax", granularity="row")}, "no codec holds"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {
        "codes": torch.ones(3, 64, dtype=torch.int32),
        "scale": torch.ones(3, 1),
        "zero": torch.full((3, 1), 3.5),
        "fmt": _format(3),
    }
    pack_linear(*arguments.values())  # type: ignore[arg-type]
    with pytest.raises(FormatError, match=message):
        pack_linear(*(arguments | change).values())  # type: ignore[arg-type]
