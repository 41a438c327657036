"""3 bits a weight, -4..3: eight digits d0..d7 (weight + 4) in three bytes; no byte is illegal.

    low two bits    byte 0 = l0 + 4 l1 + 16 l2 + 64 l3,  byte 1 = l4 + 4 l5 + 16 l6 + 64 l7       l = d mod 4
    top bit         byte 2 = h0 + 2 h1 + ... + 128 h7                                             h = d div 4

Symmetric round to nearest writes -3..3 only. Scales, and zero points of grids that are not symmetric, are bf16,
[S, G, 64], one per row and group of inputs (`order.scales_to_strips`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mote.ternary.codecs.codec import Codec

if TYPE_CHECKING:
    from torch import Tensor

_DIGITS = 8


def encode(digits: Tensor) -> Tensor:
    """uint8 digits [..., 8] in 0..7 -> uint8 [..., 3]."""
    packed = digits.new_zeros(*digits.shape[:-1], 3)
    for p in range(_DIGITS):
        packed[..., p // 4] |= (digits[..., p] & 3) << (2 * (p % 4))
        packed[..., 2] |= (digits[..., p] >> 2) << p
    return packed


def decode(packed: Tensor) -> Tensor:
    """uint8 [..., 3] -> uint8 digits [..., 8] in 0..7."""
    import torch

    low, top = packed[..., :2], packed[..., 2]
    digits = [(low[..., p // 4] >> (2 * (p % 4))) & 3 | ((top >> p) & 1) << 2 for p in range(_DIGITS)]
    return torch.stack(digits, dim=-1)


INT3 = Codec(
    name="int3",
    planes=_DIGITS,
    blocks=3,
    group_multiple=32,
    encode=encode,
    decode=decode,
    low=-4,
    high=3,
    offset=4,
    max_group=1024,
)
