"""Matrices of every format times fp32 activations, or int8 ones for the exact integers, on the native library.

    2bit, base3   x to int8 per token (x_q, s):  y = float(acc) * (s * scale), or, with scale groups,
                  y = 0; for g in order: y = y + float(acc_g) * scale[n, g];  y = y * s
    integers      x to int8 per token and scale group (x_q, s_g):
                  y = 0; for g in order: y = y + float(acc_g) * (scale[n, g] * s_g); then, with zero points, for g in
                  order: y = y + (float(sum of x_q in g) * s_g) * (scale[n, g] * (2^(B-1) - zero[n, g]))
    bf16, f32     sums in fp32 in a fixed order (csrc/mote.h)

in fp32, each operation rounded once; integers acc are exact; a bias is added last. Legend: N rows, K cols, T tokens,
G = ceil(K / group) scale groups. `threads=None` means torch.get_num_threads(). Tensors live on the CPU; anything else,
or sizes that do not fit, raises NativeError before memory is touched.
"""

import ctypes

import torch
from torch import Tensor

from mote.kernels.abi import INTEGERS
from mote.kernels.library import check, library
from mote.kernels.tensors import (
    contiguous,
    format_number,
    matrix,
    output,
    packed_bytes,
    rows_contiguous,
    thread_count,
)


def pack(q_NK: Tensor, codec_name: str, group: int = 0) -> Tensor:
    """int8 [N, K] of legal weights -> uint8 [S, KG, 256 or 768]. Raises NativeError on any other value."""
    q_NK = rows_contiguous(q_NK, "q", torch.int8)
    rows, cols = q_NK.shape
    number, size = format_number(codec_name), packed_bytes(codec_name, rows, cols, group)
    strips, width = -(-rows // 64), 768 if codec_name in ("int3", "int6") else 256
    out = torch.empty((strips, size // width // strips, width), dtype=torch.uint8)
    check(library().mote_pack(number, rows, cols, group, q_NK.data_ptr(), q_NK.stride(0), out.data_ptr(), size))
    return out


def unpack(packed: Tensor, codec_name: str, rows: int, cols: int, group: int = 0) -> Tensor:
    """uint8 [S, KG, 256 or 768] -> int8 [N, K]. Raises NativeError on bytes that no packing writes."""
    w = matrix(packed, codec_name, rows, cols, group)
    q_NK = torch.empty((rows, cols), dtype=torch.int8)
    check(library().mote_unpack(ctypes.byref(w), q_NK.data_ptr(), cols))
    return q_NK


def quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [T, K] -> (x_q int8 [T, K], s fp32 [T]), absmax per token; NaN or Inf shows in its token's s."""
    x = rows_contiguous(x, "x", torch.float32)
    tokens, cols = x.shape
    x_q = torch.empty((tokens, cols), dtype=torch.int8)
    s = torch.empty(tokens, dtype=torch.float32)
    check(
        library().mote_quantize_activation(x.data_ptr(), tokens, cols, x.stride(0), x_q.data_ptr(), cols, s.data_ptr())
    )
    return x_q, s


def matmul_i32(
    packed: Tensor,
    codec_name: str,
    rows: int,
    cols: int,
    x_q: Tensor,
    group: int = 0,
    *,
    threads: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """x_q int8 [T, K] times the packed matrix, transposed -> the exact integers, int32 [T, N]."""
    w = matrix(packed, codec_name, rows, cols, group)
    x_q = rows_contiguous(x_q, "x_q", torch.int8, cols)
    y_TN = output(out, x_q.shape[0], rows, torch.int32)
    call = library().mote_matmul_i32
    check(call(ctypes.byref(w), *_rows(x_q), y_TN.data_ptr(), y_TN.stride(0), thread_count(threads)))
    return y_TN


def linear(
    packed: Tensor,
    scale: Tensor | None,
    codec_name: str,
    rows: int,
    cols: int,
    group: int,
    granularity: str,
    x: Tensor,
    *,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    threads: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """fp32 x [T, K] times one matrix, transposed -> fp32 [T, N]; see the equations above.

    packed: uint8 [S, KG, 256 or 768], or the row-major weights themselves (codec "bf16" or "f32").
    scale: fp32, one number ("tensor"), [N] ("row") or [N, G] ("group"); bf16 [S, G, 64] for integers, whose granularity
    is "group"; None for bf16 and f32. zero: bf16 [S, G, 64], of integers but int8. out: fp32 [T, N] to write into, rows
    contiguous.
    """
    w = matrix(packed, codec_name, rows, cols, group, scale=scale, granularity=granularity, zero=zero, bias=bias)
    x = rows_contiguous(x, "x", torch.float32, cols)
    y_TN = output(out, x.shape[0], rows, torch.float32)
    call = library().mote_linear_f32
    check(call(ctypes.byref(w), *_rows(x), y_TN.data_ptr(), y_TN.stride(0), thread_count(threads)))
    return y_TN


def rows(
    packed: Tensor,
    scale: Tensor | None,
    codec_name: str,
    num_rows: int,
    cols: int,
    group: int,
    index: Tensor,
    *,
    zero: Tensor | None = None,
) -> Tensor:
    """Rows `index` int64 [n] of a matrix [num_rows, K] of integers, bf16 or f32, dequantised -> fp32 [n, K]."""
    granularity = "group" if codec_name in INTEGERS else "tensor"
    w = matrix(packed, codec_name, num_rows, cols, group, scale=scale, granularity=granularity, zero=zero)
    index = contiguous(index, "index", torch.int64)
    y = torch.empty((index.numel(), cols), dtype=torch.float32)
    check(library().mote_rows_f32(ctypes.byref(w), index.data_ptr(), index.numel(), y.data_ptr(), cols))
    return y


def _rows(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.shape[0], x.stride(0)
