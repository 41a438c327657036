"""ggml's block formats, written from integers and scales as a checkpoint holds them, not from floats.

ggml's own quantisers choose the scale anew from the largest weight of a block, so that ternary weights in Q4_0 come out
with d = max / -8: one sign at 8/8 of the scale, the other clipped to 7/8. Here the scale is the checkpoint's, rounded
to fp16, and the integers are its integers:

    type   block  bytes  order in a block of weights w[i] = d q[i], d fp16
    Q8_0      32     34  d, q[0..31] as int8
    Q4_0      32     18  d, 16 bytes (q[j] + 8) | (q[j + 16] + 8) << 4
    TQ2_0    256     66  twice 32 bytes: sum over n < 4 of (q[32 n + m] + 1) << 2 n; then d
    TQ1_0    256     54  base 3, first digit on top: 32 bytes of 5 digits 32 apart, 16 of 5 digits 16 apart, 4 of 4
                         digits 4 apart, each stored as ceil(256 number / 243); then d

BF16 and F32 hold floats. Source: ggml-common.h and ggml-quants.c of llama.cpp, gguf/quants.py.

Shapes: N rows, K columns, B = K / block blocks of a row, G = ceil(K / group) scales of a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mote.errors import FormatError

Bytes = NDArray[np.uint8]
Int8 = NDArray[np.int8]
Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]

FP16_ERROR = 0.01
"""Largest relative error that rounding a scale to fp16 may make; only scales below 6e-6 come near it."""
FP16_HALF_STEP = 2.0**-11
"""Relative error that it makes at most in fp16's normal range."""


@dataclass(frozen=True, kw_only=True)
class GgmlType:
    """One format. block: weights, nbytes: bytes of one block; low, high: integers that it holds (0, 0 for floats);
    join: int8 [N, B, block] and fp16 [N, B] to uint8 [N, B, nbytes]."""

    name: str
    block: int
    nbytes: int
    low: int = 0
    high: int = 0
    join: Callable[[Int8, Float16], Bytes] | None = None

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row of `cols` weights. Raises FormatError for a width that is no multiple of the block."""
        if cols % self.block:
            raise FormatError(f"{self.name} needs rows that are multiples of {self.block}, not {cols}")
        return cols // self.block * self.nbytes

    def write(self, q_NK: Int8, scale_NG: Float32, group: int) -> Bytes:
        """uint8 [N, row_bytes] of integers and their scales, one for `group` inputs of a row.

        Raises FormatError for integers out of range, groups that cut blocks, or a scale that fp16 cannot hold.
        """
        rows, cols = q_NK.shape
        width = self.row_bytes(cols)
        if self.join is None or (group < cols and group % self.block):
            raise FormatError(f"{self.name} cannot hold a scale per {group} inputs, its blocks are {self.block}")
        if q_NK.min() < self.low or q_NK.max() > self.high:
            raise FormatError(f"{self.name} holds {self.low}..{self.high}, not {q_NK.min()}..{q_NK.max()}")
        q_NBM = q_NK.reshape(rows, -1, self.block)
        of_block = np.arange(cols // self.block) * self.block // group
        scale_NB = scale_NG[:, of_block]
        return self.join(q_NBM, half(scale_NB, np.asarray(q_NBM.any(axis=-1)))).reshape(rows, width)


def half(scale: Float32, used: NDArray[np.bool_]) -> Float16:
    """fp32 scales of one matrix to fp16, nearest even.

    Raises FormatError where one that is `used` loses more than 1%, and more than rounding the largest one may: that is
    out of range, and not just small beside the others.
    """
    with np.errstate(over="ignore"):
        rounded = scale.astype(np.float16)
    least = FP16_HALF_STEP * np.abs(scale[used]).max(initial=0.0)
    allowed = np.maximum(FP16_ERROR * np.abs(scale), least)
    wrong = used & ~(np.abs(rounded.astype(np.float32) - scale) <= allowed)
    if wrong.any():
        raise FormatError(
            f"a scale of {scale[wrong][0]:.3g} is out of fp16's range, in which ggml keeps scales; choose BF16 or F32"
        )
    return rounded


def _with_scale(first: bool, body: Bytes, scale: Float16) -> Bytes:
    d = np.ascontiguousarray(scale)[..., None].view(np.uint8)
    return np.concatenate([d, body] if first else [body, d], axis=-1)


def _q8_0(q_NBM: Int8, d_NB: Float16) -> Bytes:
    return _with_scale(True, np.ascontiguousarray(q_NBM).view(np.uint8), d_NB)


def _q4_0(q_NBM: Int8, d_NB: Float16) -> Bytes:
    code = (q_NBM + 8).astype(np.uint8)
    return _with_scale(True, code[..., :16] | code[..., 16:] << np.uint8(4), d_NB)


def _tq2_0(q_NBM: Int8, d_NB: Float16) -> Bytes:
    digit = (q_NBM + 1).astype(np.uint8).reshape(*q_NBM.shape[:2], 2, 4, 32)
    digit = digit << np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    body: Bytes = np.bitwise_or.reduce(digit, axis=-2)
    return _with_scale(False, body.reshape(*q_NBM.shape[:2], 64), d_NB)


def _tq1_0(q_NBM: Int8, d_NB: Float16) -> Bytes:
    digit = (q_NBM + 1).astype(np.uint16)
    parts = []
    for start, digits, apart in ((0, 5, 32), (160, 5, 16), (240, 4, 4)):
        part = digit[..., start : start + digits * apart].reshape(*q_NBM.shape[:2], digits, apart)
        weight = np.array([81, 27, 9, 3, 1][:digits], dtype=np.uint16)
        number = (part * weight[:, None]).sum(axis=-2, dtype=np.uint16)
        # A decoder takes digits from the top by multiplying with 3 and keeping 8 bits: 243 is stretched to 256.
        parts.append(((number * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8))
    return _with_scale(False, np.concatenate(parts, axis=-1), d_NB)


TYPES: Mapping[str, GgmlType] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            GgmlType(name="F32", block=1, nbytes=4),
            GgmlType(name="BF16", block=1, nbytes=2),
            GgmlType(name="Q8_0", block=32, nbytes=34, low=-128, high=127, join=_q8_0),
            GgmlType(name="Q4_0", block=32, nbytes=18, low=-8, high=7, join=_q4_0),
            GgmlType(name="TQ2_0", block=256, nbytes=66, low=-1, high=1, join=_tq2_0),
            GgmlType(name="TQ1_0", block=256, nbytes=54, low=-1, high=1, join=_tq1_0),
        )
    }
)
"""The formats that an export writes, by name."""
TERNARY = ("TQ2_0", "TQ1_0")
FLOATS = ("F32", "BF16")


def bfloat16(values: Float32) -> Bytes:
    """fp32 [N, K] to the bytes of BF16, nearest even: uint8 [N, 2 K]. NaN does not occur in a checkpoint."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return rounded.astype(np.uint16).view(np.uint8)
