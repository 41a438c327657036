"""Tensors as the kernels take them: checked for type, device and layout, then passed by address."""

import torch
from torch import Tensor

from mote.errors import NativeError
from mote.kernels.abi import FORMATS, GRANULARITIES, INTEGERS, Matrix
from mote.kernels.library import last_error, library

_DENSE: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "f32": torch.float32}


def format_number(codec_name: str) -> int:
    """MOTE_2BIT and the like. Raises NativeError for a codec that the kernels do not know."""
    if codec_name not in FORMATS:
        raise NativeError(f"codec {codec_name!r} is unknown to the kernels; use one of {', '.join(FORMATS)}")
    return FORMATS[codec_name]


def packed_bytes(codec_name: str, rows: int, cols: int, group: int = 0) -> int:
    """Bytes that a matrix of [rows, cols] takes, padding included."""
    count: int = library().mote_packed_bytes(format_number(codec_name), rows, cols, group)
    if count < 0:
        raise last_error()
    return count


def matrix(
    packed: Tensor,
    codec_name: str,
    rows: int,
    cols: int,
    group: int = 0,
    *,
    scale: Tensor | None = None,
    granularity: str = "tensor",
    zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Matrix:
    """A `mote_matrix` over these tensors, without a copy. Raises NativeError for types or sizes that do not fit.

    packed: contiguous uint8 of any shape (2bit, base3, integers), bfloat16 (bf16) or float32 (f32).
    scale: contiguous fp32 (2bit, base3) or bf16 [strips, G, 64] (integers). zero: zero points, like the scales of
    integers. bias: contiguous fp32 [N].
    The result's attribute `tensors` keeps them alive; a copy of it inside another structure does not.
    """
    number = format_number(codec_name)
    expected = _DENSE.get(codec_name, torch.uint8)
    if packed.dtype != expected or packed.device.type != "cpu" or not packed.is_contiguous():
        raise NativeError(
            f"packed weights are {packed.dtype} on {packed.device}; {codec_name} takes contiguous {expected} on the cpu"
        )
    # Before any output is allocated: absurd sizes must be an error of ours, not of the allocator.
    size, given = packed_bytes(codec_name, rows, cols, group), packed.numel() * packed.element_size()
    if given != size:
        raise NativeError(f"packed weights have {given} bytes; {codec_name} of {rows} x {cols} takes {size}")
    if granularity not in GRANULARITIES:
        raise NativeError(f"granularity {granularity!r} is unknown; use one of {', '.join(GRANULARITIES)}")
    if scale is not None:
        scale = contiguous(scale, "scale", torch.bfloat16 if codec_name in INTEGERS else torch.float32)
    if zero is not None:
        zero = contiguous(zero, "zero", torch.bfloat16)
    if bias is not None:
        bias = contiguous(bias, "bias", torch.float32)
        if bias.numel() != rows:
            raise NativeError(f"bias has {bias.numel()} numbers; a matrix of {rows} rows takes {rows}")
    result = Matrix(
        data=packed.data_ptr(),
        bytes=size,
        scale=None if scale is None else scale.data_ptr(),
        scales=0 if scale is None else scale.numel(),
        bias=None if bias is None else bias.data_ptr(),
        rows=rows,
        cols=cols,
        group=group,
        format=number,
        granularity=GRANULARITIES[granularity],
        zero=None if zero is None else zero.data_ptr(),
        zeros=0 if zero is None else zero.numel(),
    )
    result.tensors = (packed, scale, zero, bias)
    return result


def contiguous(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """`tensor`, or a contiguous copy of it. Raises NativeError for another type or device."""
    if tensor.dtype != dtype or tensor.device.type != "cpu":
        raise NativeError(f"{name} is {tensor.dtype} on {tensor.device}; the kernels take {dtype} on the cpu")
    return tensor.contiguous()


def rows_contiguous(tensor: Tensor, name: str, dtype: torch.dtype, cols: int | None = None) -> Tensor:
    """A matrix as the kernels read it: the right type, each row contiguous, rows at any stride."""
    if tensor.dim() != 2:
        raise NativeError(f"{name} has shape {list(tensor.shape)}; the kernels take 2 dimensions")
    if cols is not None and tensor.shape[1] != cols:
        raise NativeError(f"{name} has shape {list(tensor.shape)}; a matrix of {cols} columns takes [tokens, {cols}]")
    in_rows = tensor.stride(-1) == 1 and tensor.stride(0) >= tensor.shape[-1]
    as_it_is = in_rows and tensor.dtype == dtype and tensor.device.type == "cpu"
    if as_it_is:
        return tensor
    # A single row counts as contiguous at any stride; flat and back, its stride is the number of columns.
    return contiguous(tensor, name, dtype).view(-1).view(tensor.shape)


def output(out: Tensor | None, tokens: int, rows: int, dtype: torch.dtype) -> Tensor:
    """`out` checked, or a new [tokens, rows]."""
    if out is None:
        return torch.empty((tokens, rows), dtype=dtype)
    if out.dtype != dtype or tuple(out.shape) != (tokens, rows) or out.stride(-1) != 1 or out.device.type != "cpu":
        raise NativeError(f"out is {out.dtype} {list(out.shape)}; give {dtype} [{tokens}, {rows}] with contiguous rows")
    return out


def thread_count(threads: int | None) -> int:
    """torch's number of threads where none is given."""
    return torch.get_num_threads() if threads is None else threads
