"""Packed formats of ternary matrices, one file each; adding one is a file and a line here."""

from mote.ternary.codecs.base3 import BASE3
from mote.ternary.codecs.codec import Codec
from mote.ternary.codecs.two_bit import TWO_BIT

CODECS: dict[str, Codec] = {codec.name: codec for codec in (BASE3, TWO_BIT)}

__all__ = ["BASE3", "CODECS", "TWO_BIT", "Codec"]
