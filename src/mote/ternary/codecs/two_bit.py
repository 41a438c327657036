"""2 bits a weight: four digits in a byte, byte = d0 + 4 d1 + 16 d2 + 64 d3; the digit 3 is illegal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mote.ternary.codecs.codec import Codec

if TYPE_CHECKING:
    from torch import Tensor

_DIGITS = 4


def encode(digits: Tensor) -> Tensor:
    """uint8 digits [..., 4] in 0..3 -> uint8 [...]. `int2` has the same bytes."""
    packed = digits[..., 0].clone()
    for p in range(1, _DIGITS):
        packed |= digits[..., p] << (2 * p)
    return packed


def decode(packed: Tensor) -> Tensor:
    """uint8 [...] -> uint8 digits [..., 4] in 0..3."""
    import torch

    return torch.stack([(packed >> (2 * p)) & 3 for p in range(_DIGITS)], dim=-1)


TWO_BIT = Codec(name="2bit", planes=_DIGITS, group_multiple=16, encode=encode, decode=decode)
