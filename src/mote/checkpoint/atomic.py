"""Files and directories that appear whole or not at all: a temporary name beside, fsync, rename.

A process that is killed leaves at most a `<name>.partial-<pid>` beside the place it wrote to, never a
half-written result, and never touches what stood there before. The next writer to the same place removes
what was left over; a lock on the directory, which dies with its owner, tells left-overs from work in
progress.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mote.errors import CheckpointError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_file(path: Path, data: bytes | str) -> None:
    """Replace the file at `path` by `data` (text as UTF-8) in one step. Raises CheckpointError."""
    path = Path(path)
    with _beside(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_error(path: Path, error: OSError) -> CheckpointError:
    """The one-line error for a write to `path` that failed; what stood at `path` is as it was."""
    reason = error.strerror or str(error)
    if error.filename is not None and Path(os.fsdecode(error.filename)) != path:
        reason += f" ({os.fsdecode(error.filename)})"
    advice = "free space there or choose another --out" if error.errno in _DISK_FULL else "choose another --out"
    return CheckpointError(f"{path}: cannot be written: {reason}; nothing there was changed, {advice}")


@contextlib.contextmanager
def new_directory(out: Path, *, force: bool = False, source: Path | None = None) -> Iterator[Path]:
    """Give an empty directory beside `out`; on leaving without an error it becomes `out` in one step.

    An `out` that exists and is not empty is refused unless `force` is set, and then is replaced as a whole
    when the new one is complete; only a directory with a config.json or mote.json is ever replaced. An `out`
    that is, holds or lies in `source`, the directory that the caller reads, is refused with `force` too.
    Raises CheckpointError, on a full disk too.
    """
    out = Path(os.path.abspath(out))
    check_target(out, force=force, source=source)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(out)
        partial.mkdir()
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise write_error(out, error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield partial
        _sync_tree(partial)
        _move_into_place(partial, out, force=force)
    except OSError as error:
        raise write_error(out, error) from None
    finally:
        # After a successful exchange this name holds the directory that was replaced.
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def new_file(out: Path, *, force: bool = False, source: Path | None = None) -> Iterator[Path]:
    """Give the name of an empty file beside `out` to write; on leaving without an error it becomes `out` in one step.

    An `out` that exists is refused unless `force` is set; one that lies in `source`, the directory that the caller
    reads, always. Raises CheckpointError, on a full disk too.
    """
    out = Path(os.path.abspath(out))
    if source is not None and Path(source).resolve() in out.resolve().parents:
        raise CheckpointError(f"{out}: lies in the input {source}; choose another --out")
    if os.path.lexists(out) and (out.is_symlink() or not out.is_file()):
        raise CheckpointError(f"{out}: exists and is not a file; choose another --out")
    if out.exists() and not force:
        raise CheckpointError(f"{out}: exists already; choose another --out, or --force to replace it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from None
    with _beside(out) as file:
        # Whoever opens this name again to write keeps the file, and with it the lock that tells it from a left-over.
        yield Path(file.name)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[BinaryIO]:
    """An empty file beside `path`; on leaving without an error it takes the place of what is there."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        remove_stale(path)
        with partial.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def remove_stale(out: Path) -> None:
    """Remove the `<out>.partial-<pid>` directories and files that killed processes left beside `out`."""
    prefix = f"{out.name}.partial-"
    for path in out.parent.iterdir():
        if not (path.name.startswith(prefix) and path.name.removeprefix(prefix).isdigit()):
            continue
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(handle)


def check_target(out: Path, *, force: bool, source: Path | None) -> None:
    """Raises CheckpointError where `new_directory` would refuse `out`, for a stage that works long before it writes."""
    place = out.resolve()
    if source is not None and Path(source).resolve() in (place, *place.parents):
        raise CheckpointError(f"{out}: is the input {source} or lies in it; choose another --out")
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise CheckpointError(f"{out}: exists and is not a directory; choose another --out")
    if not any(out.iterdir()):
        return
    if not force:
        raise CheckpointError(f"{out}: exists already; choose another --out, or --force to replace it")
    if not any((out / name).is_file() for name in ("config.json", "mote.json")):
        raise CheckpointError(f"{out}: is not a checkpoint, so --force does not replace it; choose another --out")
    if source is not None and place in Path(source).resolve().parents:
        raise CheckpointError(f"{out}: holds the input {source}, so --force does not replace it; choose another --out")


def check_writable(out: Path) -> None:
    """Makes the folder of `out`, and raises CheckpointError where nothing can be written there."""
    folder = out.resolve().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise write_error(out, error) from None


def check_space(out: Path, nbytes: int) -> None:
    """Raises CheckpointError where the disk of `out`, whose parent exists, has less than `nbytes` free."""
    free = shutil.disk_usage(out.resolve().parent).free
    if free < nbytes:
        raise CheckpointError(
            f"{out}: needs {nbytes / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB free; "
            "free space there or choose another --out"
        )


def _move_into_place(partial: Path, out: Path, *, force: bool) -> None:
    if force and out.is_dir():
        if not _exchange(partial, out):
            # Not atomic: file systems without an exchange have a moment without `out`.
            replaced = out.with_name(f"{out.name}.replaced-{os.getpid()}")
            os.rename(out, replaced)
            try:
                os.rename(partial, out)
            except OSError:
                os.rename(replaced, out)
                raise
            shutil.rmtree(replaced, ignore_errors=True)
    else:
        os.rename(partial, out)
    _sync(out.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directory entries atomically (Linux renameat2); False where system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    status = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(status == 0)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
