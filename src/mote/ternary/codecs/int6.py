"""6 bits a weight, -32..31: four digits d0..d3 (weight + 32) in three bytes; no byte is illegal.

    low four bits   byte 0 = l0 + 16 l1,  byte 1 = l2 + 16 l3          l = d mod 16
    top two bits    byte 2 = h0 + 4 h1 + 16 h2 + 64 h3                 h = d div 16

Symmetric round to nearest writes -31..31 only. Scales, and zero points of grids that are not symmetric, are bf16,
[S, G, 64], one per row and group of inputs (`order.scales_to_strips`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mote.ternary.codecs.codec import Codec

if TYPE_CHECKING:
    from torch import Tensor

_DIGITS = 4


def encode(digits: Tensor) -> Tensor:
    """uint8 digits [..., 4] in 0..63 -> uint8 [..., 3]."""
    packed = digits.new_zeros(*digits.shape[:-1], 3)
    for p in range(_DIGITS):
        packed[..., p // 2] |= (digits[..., p] & 15) << (4 * (p % 2))
        packed[..., 2] |= (digits[..., p] >> 4) << (2 * p)
    return packed


def decode(packed: Tensor) -> Tensor:
    """uint8 [..., 3] -> uint8 digits [..., 4] in 0..63."""
    import torch

    low, top = packed[..., :2], packed[..., 2]
    digits = [(low[..., p // 2] >> (4 * (p % 2))) & 15 | ((top >> (2 * p)) & 3) << 4 for p in range(_DIGITS)]
    return torch.stack(digits, dim=-1)


INT6 = Codec(
    name="int6",
    planes=_DIGITS,
    blocks=3,
    group_multiple=16,
    encode=encode,
    decode=decode,
    low=-32,
    high=31,
    offset=32,
    max_group=1024,
)
