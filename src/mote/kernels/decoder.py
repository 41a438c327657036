"""A decoder's forward pass in one native call, and the look-up of embeddings.

Arrays are numpy's, contiguous, of the dtypes that csrc/mote.h states; what they mean stands there. A call runs without
Python's lock, so another thread may set the cancel flag meanwhile.

Legend: T tokens of all spans, V vocabulary, L layers, k experts per token, K columns.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mote.errors import CancelledError, NativeError
from mote.kernels.abi import CANCELLED, PARTS, Decoder, Matrix, Span
from mote.kernels.library import check, last_error, library

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def embedding_rows(matrix: Matrix, rows: Integers) -> Floats:
    """Rows of integer, bf16 or f32 weights as fp32 [n, K]. Raises NativeError for a row that is not there."""
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    out = np.empty((rows.size, matrix.cols), dtype=np.float32)
    check(library().mote_rows_f32(ctypes.byref(matrix), rows.ctypes.data, rows.size, out.ctypes.data, matrix.cols))
    return out


def kv_block_bytes(decoder: Decoder) -> int:
    """Bytes of one block of the key-value cache, all layers together. Raises NativeError on impossible sizes."""
    count: int = library().mote_kv_block_bytes(ctypes.byref(decoder))
    if count < 0:
        raise last_error()
    return count


def decode(
    decoder: Decoder,
    x: Floats,
    spans: Sequence[tuple[int, int, Sequence[int]]],
    rows: Integers,
    *,
    threads: int,
    expert: NDArray[np.int32] | None = None,
    gate: Floats | None = None,
    cancel: "ctypes.c_int32 | None" = None,
    nanoseconds: Integers | None = None,
) -> Floats:
    """Logits fp32 [len(rows), V] of a forward pass over x fp32 [T, H], which is overwritten.

    spans: (tokens that the blocks hold already, new tokens, addresses of the blocks) of each sequence. expert int32 and
    gate fp32 [L, T, k] take the routes. nanoseconds int64 [6]: `PARTS`, added to. Raises CancelledError when `cancel`
    is set, NativeError for sizes that do not fit.
    """
    tokens = sum(count for _, count, _ in spans)
    _expect(x, (tokens, decoder.hidden), np.float32, "x")
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    logits = np.empty((rows.size, decoder.head.rows), dtype=np.float32)
    for name, array, dtype in (("expert", expert, np.int32), ("gate", gate, np.float32)):
        if array is not None:
            _expect(array, (decoder.num_layers, tokens, _largest_top_k(decoder)), dtype, name)
    if nanoseconds is not None:
        _expect(nanoseconds, (len(PARTS),), np.int64, "nanoseconds")
    held = [(ctypes.c_void_p * len(blocks))(*blocks) for _, _, blocks in spans]
    native = (Span * len(spans))(
        *(Span(start, count, blocks, len(blocks)) for (start, count, _), blocks in zip(spans, held, strict=True))
    )
    status = library().mote_decoder_f32(
        *(ctypes.byref(decoder), x.ctypes.data, native, len(spans), rows.ctypes.data, rows.size, logits.ctypes.data),
        *(_address(expert), _address(gate), None if cancel is None else ctypes.addressof(cancel)),
        *(_address(nanoseconds), threads),
    )
    if status == CANCELLED:
        raise CancelledError("cancelled; what was decoded before is kept")
    check(status)
    return logits


def _largest_top_k(decoder: Decoder) -> int:
    """Experts per token in an array of routes; 1, and nothing written, where all layers are dense."""
    ffns = (decoder.layers[i].ffn for i in range(decoder.num_layers))
    return max((int(ffn.top_k) for ffn in ffns if ffn.num_experts > 0), default=1)


def _address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else int(array.ctypes.data)


def _expect(array: NDArray[Any], shape: tuple[int, ...], dtype: Any, name: str) -> None:
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise NativeError(
            f"{name} is {array.dtype} {list(array.shape)}; give contiguous {np.dtype(dtype)} {list(shape)}"
        )
