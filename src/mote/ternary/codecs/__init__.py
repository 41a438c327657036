"""Packed formats of matrices, one file each; adding one is a file and a line here.

Shapes are for anyone who plans or opens a checkpoint, so that torch is imported by what touches digits only."""

from mote.ternary.codecs.base3 import BASE3
from mote.ternary.codecs.codec import Codec
from mote.ternary.codecs.int2 import INT2
from mote.ternary.codecs.int3 import INT3
from mote.ternary.codecs.int4 import INT4
from mote.ternary.codecs.int6 import INT6
from mote.ternary.codecs.int8 import INT8
from mote.ternary.codecs.order import scales_from_strips, scales_to_strips
from mote.ternary.codecs.two_bit import TWO_BIT
from mote.ternary.codecs.uint8 import UINT8

CODECS: dict[str, Codec] = {codec.name: codec for codec in (BASE3, TWO_BIT, INT2, INT3, INT4, INT6, INT8, UINT8)}

__all__ = ["CODECS", "Codec", "scales_from_strips", "scales_to_strips"]
