"""1.6 bits a weight: five digits in a byte, byte = d0 + 3 d1 + 9 d2 + 27 d3 + 81 d4; 243..255 are illegal.

3^5 = 243 of 256 values: 1.6 bits against the log2(3) = 1.585 that three equally likely values need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mote.ternary.codecs.codec import Codec

if TYPE_CHECKING:
    from torch import Tensor

_POWERS = (1, 3, 9, 27, 81)


def encode(digits: Tensor) -> Tensor:
    """uint8 digits [..., 5] in 0..2 -> uint8 [...] in 0..242."""
    packed = digits[..., 0].clone()
    for p, power in enumerate(_POWERS[1:], start=1):
        packed += digits[..., p] * power
    return packed


def decode(packed: Tensor) -> Tensor:
    """uint8 [...] -> uint8 digits [..., 5]; the top digit of an illegal byte is 3."""
    import torch

    rest = packed
    digits = []
    for _ in _POWERS[1:]:
        above = rest // 3
        digits.append(rest - above * 3)
        rest = above
    return torch.stack([*digits, rest], dim=-1)


BASE3 = Codec(name="base3", planes=len(_POWERS), group_multiple=1, encode=encode, decode=decode)
