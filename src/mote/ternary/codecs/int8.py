"""8 bits a weight, -127..127: one digit (weight + 128) in a byte; byte 0 is illegal.

Scales are bf16, [S, G, 64], one per row and group of inputs (`order.scales_to_strips`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mote.ternary.codecs.codec import Codec

if TYPE_CHECKING:
    from torch import Tensor


def encode(digits: Tensor) -> Tensor:
    """uint8 digits [..., 1] in 1..255 -> uint8 [...]."""
    return digits[..., 0].clone()


def decode(packed: Tensor) -> Tensor:
    """uint8 [...] -> uint8 digits [..., 1]."""
    return packed[..., None]


INT8 = Codec(
    name="int8",
    planes=1,
    group_multiple=4,
    encode=encode,
    decode=decode,
    low=-127,
    high=127,
    offset=128,
    max_group=1024,
)
