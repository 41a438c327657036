"""Integer weights with a scale, and maybe a zero point, per row and group of inputs: from who made them to a file.

    symmetric     w ~ scale * q                q in -2^(B-1) .. 2^(B-1) - 1 (8 bits: from -127)
    otherwise     w ~ scale * (code - zero)    code in 0 .. 2^B - 1, stored as q = code - 2^(B-1)

Scales and zero points are bf16 in a file. A zero point need not be an integer (HQQ's are not), and an integer one is
exact, since bf16 holds all up to 256.

Shape suffixes: N rows, K columns, G = ceil(K / group) groups, S strips of 64 rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mote.errors import FormatError
from mote.ternary.codecs import CODECS, scales_from_strips, scales_to_strips
from mote.ternary.format import WeightFormat, integer_codec


class IntegerWeight(NamedTuple):
    """q: int8 [N, K]. scale: fp32 [N, G]. zero: fp32 [N, G] in the units of codes, None for a symmetric grid."""

    q: Tensor
    scale: Tensor
    zero: Tensor | None = None


class PackedTensors(NamedTuple):
    """A matrix as a file holds it: `<module>.packed`, `.scale` and, where the grid is not symmetric, `.zero`."""

    packed: Tensor
    scale: Tensor
    zero: Tensor | None = None


def pack_linear(codes_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor | None, fmt: WeightFormat) -> PackedTensors:
    """The tensors of a matrix that somebody else quantised: uint8 [S, KG, 256 or 768], bf16 [S, G, 64] once or twice.

    codes_NK: any integer dtype; signed around 0 for a symmetric format, else from 0. scale_NG, zero_NG: any float (zero
    points: any) dtype; their values must be bf16's, so that what is stored dequantises to the same weights. fmt: an
    `integer_codec` format, "given" scales where no rule of ours made them. Raises FormatError for anything else.
    """
    return pack_integers(given_integers(codes_NK, scale_NG, zero_NG, fmt), fmt)


def given_integers(codes_NK: Tensor, scale_NG: Tensor, zero_NG: Tensor | None, fmt: WeightFormat) -> IntegerWeight:
    """The same before packing; arguments and errors as in `pack_linear`."""
    name = codec_of(fmt)
    if (zero_NG is None) != fmt.symmetric:
        raise FormatError(f"{name}: zero points {'are missing' if zero_NG is None else 'with a symmetric format'}")
    if codes_NK.dim() != 2 or codes_NK.is_floating_point() or codes_NK.dtype == torch.bool:
        raise FormatError(f"{name}: codes are {codes_NK.dtype} {list(codes_NK.shape)}; give integers [rows, columns]")
    rows, cols = codes_NK.shape
    shape = (rows, -(-cols // fmt.group))
    low, high = (CODECS[name].low, CODECS[name].high) if fmt.symmetric else (0, (1 << fmt.bits) - 1)
    if bool(((codes_NK < low) | (codes_NK > high)).any()):
        raise FormatError(f"{name}: a code is not in {low}..{high}")
    for what, values in (("scales", scale_NG), ("zero points", zero_NG)):
        if values is None:
            continue
        if tuple(values.shape) != shape:
            raise FormatError(f"{name}: {what} are {list(values.shape)}, not {list(shape)} (rows, groups)")
        exact = values.to(torch.bfloat16).to(torch.float64) == values.to(torch.float64)
        if not bool((exact & values.isfinite()).all()):
            raise FormatError(f"{name}: {what} are not finite numbers of bfloat16; round them before choosing codes")
    q_NK = codes_NK.to(torch.int16) - (0 if fmt.symmetric else 1 << (fmt.bits - 1))
    zero = None if zero_NG is None else zero_NG.to(torch.float32)
    return IntegerWeight(q_NK.to(torch.int8), scale_NG.to(torch.float32), zero)


def pack_integers(weight: IntegerWeight, fmt: WeightFormat) -> PackedTensors:
    """The tensors of a file; scales and zero points are rounded to bf16. Raises FormatError for an illegal integer."""
    packed = CODECS[codec_of(fmt)].pack(weight.q, fmt.group)
    zero = None if weight.zero is None else scales_to_strips(weight.zero)
    return PackedTensors(packed, scales_to_strips(weight.scale), zero)


def unpack_integers(tensors: PackedTensors, rows: int, cols: int, fmt: WeightFormat) -> IntegerWeight:
    """The inverse of `pack_integers` but for the rounding."""
    q_NK = CODECS[codec_of(fmt)].unpack(tensors.packed, rows, cols, fmt.group)
    zero = None if tensors.zero is None else scales_from_strips(tensors.zero, rows)
    return IntegerWeight(q_NK, scales_from_strips(tensors.scale, rows), zero)


def dequantize_integers(weight: IntegerWeight, fmt: WeightFormat) -> Tensor:
    """fp32 [N, K]: scale * q, or scale * (code - zero), each operation rounded once."""
    cols = weight.q.shape[-1]
    w_NK = weight.q.to(torch.float32)
    if weight.zero is not None:
        w_NK += 1 << (fmt.bits - 1)
        w_NK -= weight.zero.repeat_interleave(fmt.group, dim=-1)[..., :cols]
    return w_NK.mul_(weight.scale.repeat_interleave(fmt.group, dim=-1)[..., :cols])


def codec_of(fmt: WeightFormat) -> str:
    """Name of the integer codec of `fmt`. Raises FormatError when none holds it."""
    name = integer_codec(fmt)
    if name is None:
        raise FormatError(
            f"no codec holds {fmt}; use int2, int3, int4, int6 or int8 with scales per group and int8_group activations"
        )
    return name
