"""The kernels' functions in plain torch: the specification that every native kernel must equal bit for bit.

    acc[t, n] = sum_k w[n, k] x_q[t, k], exact in int32; scales as in `mote.ternary.linear.quantized_linear`

Row-major and slow on purpose; it also runs where there is no native library, for whoever asks for it by name.
"""

import torch
from torch import Tensor

from mote.ternary.activations import quantize_activation
from mote.ternary.codecs import CODECS
from mote.ternary.format import Granularity, WeightFormat
from mote.ternary.linear import quantized_linear

__all__ = ["pack", "packed_bytes", "quantize_activation", "ternary_linear", "ternary_matmul", "unpack"]


def packed_bytes(codec_name: str, rows: int, cols: int, group: int = 0) -> int:
    """Bytes that a matrix of [rows, cols] takes, padding included."""
    strips, k_groups, width = CODECS[codec_name].packed_shape(rows, cols, group)
    return strips * k_groups * width


def pack(q_NK: Tensor, codec_name: str, group: int = 0) -> Tensor:
    """int8 [N, K] of -1, 0, 1 -> uint8 [S, KG, 256]."""
    return CODECS[codec_name].pack(q_NK, group)


def unpack(packed: Tensor, codec_name: str, rows: int, cols: int, group: int = 0) -> Tensor:
    """uint8 [S, KG, 256] -> int8 [N, K]."""
    return CODECS[codec_name].unpack(packed, rows, cols, group)


def ternary_matmul(packed: Tensor, codec_name: str, rows: int, cols: int, x_q: Tensor, group: int = 0) -> Tensor:
    """x_q int8 [T, K] times the packed matrix, transposed -> the exact integers, int32 [T, N]."""
    q_NK = unpack(packed, codec_name, rows, cols, group)
    return (x_q.to(torch.int64) @ q_NK.to(torch.int64).t()).to(torch.int32)


def ternary_linear(
    packed: Tensor,
    scale: Tensor,
    codec_name: str,
    rows: int,
    cols: int,
    group: int,
    granularity: Granularity,
    x_q: Tensor,
    s: Tensor,
) -> Tensor:
    """One quantised linear -> fp32 [T, N]; arguments as in `mote.kernels.ternary_linear`."""
    q_NK = unpack(packed, codec_name, rows, cols, group)
    fmt = WeightFormat(granularity=granularity, group=group if granularity == "group" else 0)
    return quantized_linear(x_q, s, q_NK, scale, fmt)
