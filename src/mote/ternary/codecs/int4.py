"""4 bits a weight, -8..7: two digits (weight + 8) in a byte, byte = d0 + 16 d1; no byte is illegal.

Round to nearest writes -7..7 only; -8 is there for methods that choose their levels otherwise. Scales are bf16,
[S, G, 64], one per row and group of inputs (`order.scales_to_strips`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mote.ternary.codecs.codec import Codec

if TYPE_CHECKING:
    from torch import Tensor


def encode(digits: Tensor) -> Tensor:
    """uint8 digits [..., 2] in 0..15 -> uint8 [...]."""
    return digits[..., 0] | digits[..., 1] << 4


def decode(packed: Tensor) -> Tensor:
    """uint8 [...] -> uint8 digits [..., 2] in 0..15."""
    import torch

    return torch.stack([packed & 15, packed >> 4], dim=-1)


INT4 = Codec(
    name="int4",
    planes=2,
    group_multiple=8,
    encode=encode,
    decode=decode,
    low=-8,
    high=7,
    offset=8,
    max_group=1024,
)
