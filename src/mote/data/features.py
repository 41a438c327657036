"""Vision features on disk: while the tower is frozen every picture goes through it once, not once an epoch.

A folder per tower holds `features.bin`, rows of one size that are read through a memory map, and `index.txt`,
one picture's SHA-256 a line. A row counts only when its line is complete, and the line is written after the
row is on disk: a killed run loses the batch at hand and nothing else.

Shape suffixes: B pictures, P features per picture, D width of a feature.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mote.data.images import MAX_PIXELS, open_image, picture_hash
from mote.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LINE = 65
"""Bytes of a line of the index: the hex SHA-256 of the picture's file, and a line feed."""


class FeatureCache:
    """Features [P, D] of pictures, all of one shape, kept in one dtype.

    folder: where caches lie, one below it for each `tower_id`. tower_id names everything that the features
    depend on beside the picture (weights, image size, preprocessing). dtype: as torch names it; what is
    computed is rounded to it. Raises DataError when the folder holds another dtype or cannot be written.
    """

    def __init__(self, folder: Path | str, tower_id: str, *, dtype: str = "bfloat16") -> None:
        self._folder = Path(folder) / tower_id
        self._dtype = dtype
        self._shape: tuple[int, int] | None = None
        self._row_bytes = 0
        self._rows: dict[str, int] = {}
        self._count = 0
        self._table: np.ndarray[Any, Any] | None = None
        self._keys: dict[Path, tuple[tuple[int, int], str]] = {}
        with self._disk():
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._load()

    def __len__(self) -> int:
        """Number of different pictures."""
        return len(self._rows)

    def __contains__(self, picture: Path) -> bool:
        return self._key(picture) in self._rows

    def __getitem__(self, picture: Path) -> "Tensor":
        """Features [P, D] of a picture, a copy. DataError if it was not filled in."""
        import torch

        row = self._rows.get(self._key(picture))
        if row is None or self._shape is None:
            raise DataError(f"{picture}: has no features in {self._folder}; fill the cache first")
        if self._table is None:
            with self._disk():
                self._table = self._map()
        data = torch.from_numpy(self._table[row].copy())
        return data.view(getattr(torch, self._dtype)).view(self._shape)

    def fill(
        self,
        pictures: Sequence[Path],
        compute: "Callable[[list[Image.Image]], Tensor]",
        *,
        batch: int = 32,
        progress: Callable[[int, int], None] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Compute and store the features of those pictures that have none yet.

        compute: RGB pictures -> [B, P, D] on any device, any dtype. batch: pictures of one call. progress is
        told (done, total) of the missing ones. Raises DataError naming a picture that cannot be opened.
        """
        missing = {self._key(p): p for p in reversed(pictures) if p not in self}
        todo = sorted(missing.items(), key=lambda item: str(item[1]))
        for start in range(0, len(todo), batch):
            part = todo[start : start + batch]
            self._append([key for key, _ in part], compute([open_image(p, max_pixels=max_pixels) for _, p in part]))
            if progress is not None:
                progress(min(start + batch, len(todo)), len(todo))

    def _key(self, picture: Path) -> str:
        """Hex SHA-256 of the file, remembered as long as its size and time stay the same."""
        try:
            status = picture.stat()
        except OSError as error:
            raise DataError(f"{picture}: cannot be read: {error.strerror}") from None
        stamp = (status.st_size, status.st_mtime_ns)
        known = self._keys.get(picture)
        if known is None or known[0] != stamp:
            known = self._keys[picture] = (stamp, picture_hash(picture))
        return known[1]

    def _append(self, keys: Sequence[str], features_BPD: "Tensor") -> None:
        import torch

        shape = tuple(features_BPD.shape)
        if len(shape) != 3 or shape[0] != len(keys) or (self._shape and shape[1:] != self._shape):
            raise DataError(f"{self._folder}: features of shape {shape} for {len(keys)} pictures, have {self._shape}")
        if not torch.isfinite(features_BPD).all():
            raise DataError("the vision tower gave NaN or infinite features; check its weights and its dtype")
        stored = features_BPD.detach().to("cpu", getattr(torch, self._dtype)).contiguous()
        data = stored.view(torch.uint8).numpy().tobytes()
        with self._disk(), self._locked():
            if self._shape is None:
                about = {"shape": list(shape[1:]), "dtype": self._dtype}
                _write_synced(self._folder / "about.json", 0, json.dumps(about).encode())
            self._load()
            _write_synced(self._folder / "features.bin", self._count * self._row_bytes, data)
            lines = "".join(f"{key}\n" for key in keys).encode()
            _write_synced(self._folder / "index.txt", self._count * LINE, lines)
            self._load()

    def _load(self) -> None:
        """Read shape and index; lines whose row is not whole count as never written."""
        about = self._folder / "about.json"
        if not about.exists():
            return
        try:
            description = json.loads(about.read_bytes())
            self._shape = (int(description["shape"][0]), int(description["shape"][1]))
            dtype = description["dtype"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise DataError(f"{about}: damaged; delete {self._folder}") from None
        if dtype != self._dtype:
            raise DataError(f"{self._folder}: holds {dtype} features, not {self._dtype}; delete it")
        import torch

        self._row_bytes = self._shape[0] * self._shape[1] * getattr(torch, self._dtype).itemsize
        index, table = self._folder / "index.txt", self._folder / "features.bin"
        lines = index.read_bytes() if index.exists() else b""
        rows = table.stat().st_size // self._row_bytes if table.exists() else 0
        self._count = min(len(lines) // LINE, rows)
        keys = lines[: self._count * LINE].decode("ascii", errors="replace").splitlines()
        # Of a picture that two processes computed at once the later row is read; they are equal.
        self._rows = {key: row for row, key in enumerate(keys)}
        self._table = None

    def _map(self) -> "np.ndarray[Any, Any]":
        import numpy as np

        path = self._folder / "features.bin"
        return np.memmap(path, dtype=np.uint8, mode="r", shape=(self._count, self._row_bytes))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{error.filename or self._folder}: feature cache: {error.strerror}; "
                "free space or choose another folder"
            ) from None


def _write_synced(path: Path, offset: int, data: bytes) -> None:
    """Write at an offset, cut what was behind it, and wait until it is on disk."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as stream:
        stream.seek(offset)
        stream.write(data)
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())
