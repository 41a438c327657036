"""8 bits a weight with a zero point: one code 0..255 in a byte; no byte is illegal.

The bytes of `int8` with a 256th level, which a symmetric grid does not have: as everywhere, the integer is the code
less an offset, here -128..127. Scales and zero points are bf16, [S, G, 64], one per row and group of inputs
(`order.scales_to_strips`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mote.ternary.codecs.codec import Codec

if TYPE_CHECKING:
    from torch import Tensor


def encode(digits: Tensor) -> Tensor:
    """uint8 digits [..., 1] -> uint8 [...]."""
    return digits[..., 0].clone()


def decode(packed: Tensor) -> Tensor:
    """uint8 [...] -> uint8 digits [..., 1]."""
    return packed[..., None]


UINT8 = Codec(
    name="uint8",
    planes=1,
    group_multiple=4,
    encode=encode,
    decode=decode,
    low=-128,
    high=127,
    offset=128,
    max_group=1024,
)
