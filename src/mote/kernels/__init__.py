"""The one door to the native library `libmote` (csrc/mote.h), with torch tensors in and out.

`reference` holds the same functions in plain torch: the specification that the library is compared with, and
what to call where a slow answer is wanted instead of none. Nothing falls back to it by itself.
"""

from mote.kernels.ffn import FeedForward, Mixed, StoredMatrix, SwiGlu, ffn
from mote.kernels.library import info, select_isa
from mote.kernels.linear import linear, matmul_i32, pack, quantize_activation, rows, unpack
from mote.kernels.tensors import packed_bytes

__all__ = [
    "FeedForward",
    "Mixed",
    "StoredMatrix",
    "SwiGlu",
    "ffn",
    "info",
    "linear",
    "matmul_i32",
    "pack",
    "packed_bytes",
    "quantize_activation",
    "rows",
    "select_isa",
    "unpack",
]
