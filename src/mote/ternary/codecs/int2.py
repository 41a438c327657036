"""2 bits a weight, -2..1: four digits (weight + 2) in a byte, byte = d0 + 4 d1 + 16 d2 + 64 d3; no byte is illegal.

The bytes of `two_bit` with a fourth level. Symmetric round to nearest writes -1..1 only. Scales, and zero points of
grids that are not symmetric, are bf16, [S, G, 64], one per row and group of inputs (`order.scales_to_strips`).
"""

from mote.ternary.codecs.codec import Codec
from mote.ternary.codecs.two_bit import decode, encode

INT2 = Codec(
    name="int2",
    planes=4,
    group_multiple=16,
    encode=encode,
    decode=decode,
    low=-2,
    high=1,
    offset=2,
    max_group=1024,
)
