"""Packed ternary matrices times int8 activations on the native library (exact int32, then fp32 scales).

    acc[t, n] = sum_k w[n, k] x_q[t, k]             exact: the same bits on every ISA and number of threads
    tensor, row:  y = float(acc) * (s[t] * scale[n])
    group:        y = 0; for g in order: y = y + float(acc_g) * scale[n, g];   y = y * s[t]

in fp32, each operation rounded once. Legend: N rows, K cols, T tokens, G = ceil(K / group) scale groups.
Packed tensors are contiguous uint8 of any shape with the right number of bytes ([S, KG, 256]), scales fp32.
`threads=None` means torch.get_num_threads(). Tensors live on the CPU; anything else, or sizes that do not
fit, raises NativeError before memory is touched.
"""

import ctypes

import torch
from torch import Tensor

from mote.errors import NativeError
from mote.kernels.library import Matrix, check, last_error, library
from mote.ternary.format import Granularity

FORMATS: dict[str, int] = {"2bit": 1, "base3": 2}
_GRANULARITIES: dict[str, int] = {"tensor": 0, "row": 1, "group": 2}


def packed_bytes(codec_name: str, rows: int, cols: int, group: int = 0) -> int:
    """Bytes that a matrix of [rows, cols] takes, padding included."""
    count: int = library().mote_packed_bytes(_format(codec_name), rows, cols, group)
    if count < 0:
        raise last_error()
    return count


def pack(q_NK: Tensor, codec_name: str, group: int = 0) -> Tensor:
    """int8 [N, K] of -1, 0, 1 -> uint8 [S, KG, 256]. Raises NativeError on any other value."""
    q_NK = _checked(q_NK, "q", torch.int8, 2)
    rows, cols = q_NK.shape
    size = packed_bytes(codec_name, rows, cols, group)
    out = torch.empty((-(-rows // 64), size // 256 // -(-rows // 64), 256), dtype=torch.uint8)
    check(
        library().mote_pack(
            _format(codec_name), rows, cols, group, q_NK.data_ptr(), q_NK.stride(0), out.data_ptr(), size
        )
    )
    return out


def unpack(packed: Tensor, codec_name: str, rows: int, cols: int, group: int = 0) -> Tensor:
    """uint8 [S, KG, 256] -> int8 [N, K] of -1, 0, 1. Raises NativeError on bytes that no packing writes."""
    matrix = _matrix(packed, codec_name, rows, cols, group)
    q_NK = torch.empty((rows, cols), dtype=torch.int8)
    check(library().mote_unpack(ctypes.byref(matrix), q_NK.data_ptr(), cols))
    return q_NK


def quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 [T, K] -> (x_q int8 [T, K], s fp32 [T]), absmax per token; NaN or Inf shows in its token's s."""
    x = _checked(x, "x", torch.float32, 2)
    tokens, cols = x.shape
    x_q = torch.empty((tokens, cols), dtype=torch.int8)
    s = torch.empty(tokens, dtype=torch.float32)
    check(
        library().mote_quantize_activation(x.data_ptr(), tokens, cols, x.stride(0), x_q.data_ptr(), cols, s.data_ptr())
    )
    return x_q, s


def ternary_matmul(
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
    matrix = _matrix(packed, codec_name, rows, cols, group)
    x_q = _activations(x_q, cols)
    y_TN = _output(out, x_q.shape[0], rows, torch.int32)
    check(
        library().mote_ternary_matmul_i32(
            ctypes.byref(matrix),
            x_q.data_ptr(),
            x_q.shape[0],
            x_q.stride(0),
            y_TN.data_ptr(),
            y_TN.stride(0),
            _threads(threads),
        )
    )
    return y_TN


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
    *,
    threads: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One quantised linear -> fp32 [T, N]; see the equations above.

    scale: fp32, one number ("tensor"), [N] ("row") or [N, G] ("group"). x_q int8 [T, K] and s fp32 [T] come
    from `quantize_activation` or its equal in mote.ternary. out: fp32 [T, N] to write into, rows contiguous.
    """
    matrix = _matrix(packed, codec_name, rows, cols, group)
    x_q = _activations(x_q, cols)
    tokens = x_q.shape[0]
    s = _contiguous(s, "s", torch.float32)
    if s.numel() != tokens:
        raise NativeError(f"ternary_linear: {s.numel()} activation scales for {tokens} tokens; give one a token")
    scale = _contiguous(scale, "scale", torch.float32)
    if granularity not in _GRANULARITIES:
        raise NativeError(f"granularity {granularity!r} is unknown; use one of {', '.join(_GRANULARITIES)}")
    y_TN = _output(out, tokens, rows, torch.float32)
    check(
        library().mote_ternary_linear_f32(
            ctypes.byref(matrix),
            scale.data_ptr(),
            scale.numel(),
            _GRANULARITIES[granularity],
            x_q.data_ptr(),
            tokens,
            x_q.stride(0),
            s.data_ptr(),
            y_TN.data_ptr(),
            y_TN.stride(0),
            _threads(threads),
        )
    )
    return y_TN


def _format(codec_name: str) -> int:
    if codec_name not in FORMATS:
        raise NativeError(f"codec {codec_name!r} is unknown to the kernels; use one of {', '.join(FORMATS)}")
    return FORMATS[codec_name]


def _threads(threads: int | None) -> int:
    return torch.get_num_threads() if threads is None else threads


def _contiguous(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    if tensor.dtype != dtype or tensor.device.type != "cpu":
        raise NativeError(f"{name} is {tensor.dtype} on {tensor.device}; the kernels take {dtype} on the cpu")
    return tensor.contiguous()


def _checked(tensor: Tensor, name: str, dtype: torch.dtype, dims: int) -> Tensor:
    """`tensor` as the kernels read it: the right type, each row contiguous, rows at any stride."""
    if tensor.dim() != dims:
        raise NativeError(f"{name} has shape {list(tensor.shape)}; the kernels take {dims} dimensions")
    rows_are_contiguous = tensor.stride(-1) == 1 and tensor.stride(0) >= tensor.shape[-1]
    return (
        tensor
        if rows_are_contiguous and tensor.dtype == dtype and tensor.device.type == "cpu"
        else _contiguous(tensor, name, dtype)
    )


def _matrix(packed: Tensor, codec_name: str, rows: int, cols: int, group: int) -> Matrix:
    if packed.dtype != torch.uint8 or packed.device.type != "cpu" or not packed.is_contiguous():
        raise NativeError(f"packed weights are {packed.dtype} on {packed.device}; give contiguous uint8 on the cpu")
    # Before any output is allocated: absurd sizes must be an error of ours, not of the allocator.
    size = packed_bytes(codec_name, rows, cols, group)
    if packed.numel() != size:
        raise NativeError(f"packed weights have {packed.numel()} bytes; {codec_name} of {rows} x {cols} takes {size}")
    return Matrix(packed.data_ptr(), size, rows, cols, group, _format(codec_name))


def _activations(x_q: Tensor, cols: int) -> Tensor:
    x_q = _checked(x_q, "x_q", torch.int8, 2)
    if x_q.shape[1] != cols:
        raise NativeError(f"x_q has shape {list(x_q.shape)}; a matrix of {cols} columns takes [tokens, {cols}]")
    return x_q


def _output(out: Tensor | None, tokens: int, rows: int, dtype: torch.dtype) -> Tensor:
    if out is None:
        return torch.empty((tokens, rows), dtype=dtype)
    if out.dtype != dtype or tuple(out.shape) != (tokens, rows) or out.stride(-1) != 1 or out.device.type != "cpu":
        raise NativeError(f"out is {out.dtype} {list(out.shape)}; give {dtype} [{tokens}, {rows}] with contiguous rows")
    return out
