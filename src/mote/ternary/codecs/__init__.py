"""Packed formats of matrices, one file each; adding one is a file and a line here."""

from mote.ternary.codecs.base3 import BASE3
from mote.ternary.codecs.codec import Codec
from mote.ternary.codecs.int4 import INT4
from mote.ternary.codecs.int8 import INT8
from mote.ternary.codecs.order import scales_from_strips, scales_to_strips
from mote.ternary.codecs.two_bit import TWO_BIT

CODECS: dict[str, Codec] = {codec.name: codec for codec in (BASE3, TWO_BIT, INT4, INT8)}

__all__ = ["BASE3", "CODECS", "INT4", "INT8", "TWO_BIT", "Codec", "scales_from_strips", "scales_to_strips"]
