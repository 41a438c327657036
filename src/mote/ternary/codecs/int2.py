"""2 bits a weight, -2..1: four digits (weight + 2) in a byte, byte = d0 + 4 d1 + 16 d2 + 64 d3; no byte is illegal.

The bytes of `two_bit` with a fourth level. Symmetric round to nearest writes -1..1 only. Scales, and zero points of
grids that are not symmetric, are bf16, [S, G, 64], one per row and group of inputs (`order.scales_to_strips`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mote.ternary.codecs.codec import Codec

if TYPE_CHECKING:
    from torch import Tensor

_DIGITS = 4


def encode(digits: Tensor) -> Tensor:
    """uint8 digits [..., 4] in 0..3 -> uint8 [...]."""
    packed = digits[..., 0].clone()
    for p in range(1, _DIGITS):
        packed |= digits[..., p] << (2 * p)
    return packed


def decode(packed: Tensor) -> Tensor:
    """uint8 [...] -> uint8 digits [..., 4] in 0..3."""
    import torch

    return torch.stack([(packed >> (2 * p)) & 3 for p in range(_DIGITS)], dim=-1)


INT2 = Codec(
    name="int2",
    planes=_DIGITS,
    group_multiple=16,
    encode=encode,
    decode=decode,
    low=-2,
    high=1,
    offset=2,
    max_group=1024,
)
