"""Writing a GGUF file as a stream, one tensor in memory at a time; it appears whole or not at all."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mote.checkpoint.atomic import check_space, new_file
from mote.errors import FormatError
from mote.export.ggml import Bytes, GgmlType


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A tensor to write. shape: in numpy's order, the last one a row; produce: its rows as bytes, uint8 [..., row
    bytes], in pieces one after the other."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    produce: Callable[[], Iterator[Bytes]]

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return int(np.prod(self.shape[:-1], dtype=np.int64)) * self.type.row_bytes(self.shape[-1])


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """One file. describe: puts its metadata into a gguf.GGUFWriter."""

    path: Path
    arch: str
    describe: Callable[[Any], None]
    tensors: Sequence[GgufTensor]


def gguf_library() -> ModuleType:
    """The package gguf, which is optional. Raises FormatError that says how to install it."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise FormatError("export gguf needs the package gguf; pip install 'mote-lmm[export]'") from None
    return gguf


def write_files(
    files: Sequence[GgufFile],
    *,
    source: Path,
    force: bool,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes `files`, and puts them in place when all are complete. source: the checkpoint that is read.

    progress: is told, after each piece, (its bytes, those of all). Raises CheckpointError (disk full, a path in use).
    """
    total = sum(tensor.nbytes for file in files for tensor in file.tensors)
    with ExitStack() as stack:
        # Left in the opposite order, so that the first one, which stands for all, appears last.
        partials = [stack.enter_context(new_file(file.path, force=force, source=source)) for file in files]
        check_space(files[0].path, total)
        for file, partial in zip(files, partials, strict=True):
            _write(file, partial, None if progress is None else lambda count: progress(count, total))


def _write(file: GgufFile, partial: Path, progress: Callable[[int], None] | None) -> None:
    gguf = gguf_library()
    writer = gguf.GGUFWriter(str(partial), file.arch)
    file.describe(writer)
    for tensor in file.tensors:
        width = tensor.type.row_bytes(tensor.shape[-1])
        kind = gguf.GGMLQuantizationType[tensor.type.name]
        shape, dtype = (*tensor.shape[:-1], width), np.dtype(np.uint8)
        writer.add_tensor_info(tensor.name, shape, dtype, tensor.nbytes, raw_dtype=kind)
    with _closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (handle,) = writer.fout
        for tensor in file.tensors:
            handle.write(bytes(-handle.tell() % writer.data_alignment))
            written = 0
            for piece in tensor.produce():
                handle.write(np.ascontiguousarray(piece).data)
                written += piece.nbytes
                if progress is not None:
                    progress(piece.nbytes)
            if written != tensor.nbytes:
                raise AssertionError(f"{tensor.name}: {written} bytes were made, {tensor.nbytes} planned")
        handle.write(bytes(-handle.tell() % writer.data_alignment))


@contextmanager
def _closing(writer: Any) -> Iterator[None]:
    try:
        yield
    finally:
        writer.close()
