"""The one door to the native library `libmote` (csrc/mote.h), with torch tensors in and out.

`reference` holds the same functions in plain torch: the specification that the library is compared with, and
what to call where a slow answer is wanted instead of none. Nothing falls back to it by itself.
"""

from mote.kernels.library import info, select_isa
from mote.kernels.ternary import (
    pack,
    packed_bytes,
    quantize_activation,
    ternary_linear,
    ternary_matmul,
    unpack,
)

__all__ = [
    "info",
    "pack",
    "packed_bytes",
    "quantize_activation",
    "select_isa",
    "ternary_linear",
    "ternary_matmul",
    "unpack",
]
