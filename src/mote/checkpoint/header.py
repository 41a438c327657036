"""The safetensors header, read as from a stranger and written so that packed tensors start on 64 bytes.

A file is `n (uint64, little endian) | n bytes of JSON | data`; the JSON maps a name to `{dtype, shape,
data_offsets}`, offsets counted from the start of the data. Everything that a header claims is checked
against the size of the file before any byte of data is touched. Source:
https://github.com/huggingface/safetensors (README, "Format").
"""

import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mote.errors import CheckpointError

HEADER_LIMIT = 100_000_000
"""Largest header in bytes; the limit of safetensors itself."""
RANK_LIMIT = 32
ALIGNMENT = 64
"""Bytes on which the data, and every tensor whose size is a multiple of it, start in files that we write."""

TORCH_NAMES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F32": ("float32", 4),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
    "F64": ("float64", 8),
}
"""Name in the file -> (name in torch, bytes per element)."""
_FILE_NAMES = {torch_name: name for name, (torch_name, _) in TORCH_NAMES.items()}


def dtype_name(dtype: object) -> str:
    """Name in the file ("BF16") of such a name or of a `torch.dtype`. Raises CheckpointError."""
    text = str(dtype)
    if text in TORCH_NAMES:
        return text
    try:
        return _FILE_NAMES[text.removeprefix("torch.")]
    except KeyError:
        raise CheckpointError(f"dtype {text!r} cannot be stored; use one of {', '.join(TORCH_NAMES)}") from None


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: bytes [`offset`, `offset + nbytes`) of the file `shard`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        """Number of elements (1 for a scalar)."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that is going to be written: `dtype` is a name such as "BF16", or a `torch.dtype`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * TORCH_NAMES[self.dtype][1]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) != len(pairs):
        raise ValueError("a name stands twice")
    return plain


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises CheckpointError on a repeated key or another kind of value."""
    try:
        plain = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON ({error}); fetch or write the file again") from None
    if not isinstance(plain, dict):
        raise CheckpointError(f"{where}: holds a {type(plain).__name__}, not a JSON object")
    return plain


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _tensor(name: str, entry: Any, *, shard: str, data_start: int, data_bytes: int, where: str) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: header entry of {name!r} is not {{dtype, shape, data_offsets}}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TORCH_NAMES:
        raise CheckpointError(f"{where}: tensor {name!r} has unknown dtype {dtype!r}")
    if not isinstance(shape, list) or len(shape) > RANK_LIMIT or not all(map(_is_size, shape)):
        raise CheckpointError(f"{where}: tensor {name!r} has an impossible shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise CheckpointError(f"{where}: tensor {name!r} has impossible offsets")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise CheckpointError(
            f"{where}: tensor {name!r} lies outside the file (bytes {begin} to {end} of {data_bytes}); "
            "the file is truncated or damaged, fetch or write it again"
        )
    if math.prod(shape) * TORCH_NAMES[dtype][1] != end - begin:
        raise CheckpointError(f"{where}: tensor {name!r} {dtype}{shape} does not fill its {end - begin} bytes")
    return TensorInfo(name, dtype, tuple(shape), shard, data_start + begin, end - begin)


def parse_header(text: bytes, *, shard: str, file_bytes: int, where: str) -> list[TensorInfo]:
    """Tensors of a header (without its 8 length bytes) of a file of `file_bytes`, in data order.

    Raises CheckpointError when an entry is malformed, lies outside the file, overlaps another or leaves a
    hole.
    """
    plain = parse_json(text, f"{where}: header")
    metadata = plain.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{where}: __metadata__ of the header is not a map of strings")
    start = 8 + len(text)
    data_bytes = file_bytes - start
    found = [
        _tensor(name, entry, shard=shard, data_start=start, data_bytes=data_bytes, where=where)
        for name, entry in plain.items()
    ]
    found.sort(key=lambda info: (info.offset, info.nbytes))
    expected = start
    for info in found:
        if info.offset != expected:
            raise CheckpointError(f"{where}: tensor {info.name!r} overlaps another one or follows a hole")
        expected += info.nbytes
    if expected != file_bytes:
        raise CheckpointError(
            f"{where}: {file_bytes} bytes long, but its header describes {expected}; "
            "the file is truncated or damaged, fetch or write it again"
        )
    return found


def read_header(path: Path) -> list[TensorInfo]:
    """Checked tensors of the safetensors file at `path`. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            first = file.read(8)
            if len(first) < 8:
                raise CheckpointError(f"{path}: {file_bytes} bytes long, too short for a safetensors file")
            (length,) = struct.unpack("<Q", first)
            if length > min(HEADER_LIMIT, file_bytes - 8):
                raise CheckpointError(
                    f"{path}: claims a header of {length} bytes in a file of {file_bytes}; "
                    "not a safetensors file, or truncated"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if len(text) != length or not text.startswith(b"{"):
        raise CheckpointError(f"{path}: not a safetensors file")
    return parse_header(text, shard=path.name, file_bytes=file_bytes, where=str(path))


def data_order(tensors: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """The order of tensors in a file of ours: multiples of 64 bytes first, as they come, then wider elements first.

    With a header padded to 64 bytes all of the former start on 64 bytes (packed tensors are made of blocks
    of 256), and each of the latter on a multiple of its element size. A matrix and scales of such sizes stay together,
    so that whoever makes both at once keeps neither for long.
    """
    return sorted(tensors, key=lambda t: (1, -TORCH_NAMES[t.dtype][1]) if t.nbytes % ALIGNMENT else (0, 0))


def build_header(tensors: Sequence[PlannedTensor]) -> bytes:
    """Length bytes and padded header of a file of `tensors` in this order; a multiple of 64 bytes."""
    plain: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        plain[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
