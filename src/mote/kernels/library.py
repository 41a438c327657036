"""Finds, loads and checks libmote, and turns its statuses into NativeError.

The library lies beside this file in a wheel. In an editable install the sources stay in the checkout while
the library goes to site-packages, and Python then gives the package two folders: both are looked in.
`MOTE_LIBRARY` names another file instead (a sanitizer build, say).
"""

import ctypes
import os
import sys
from ctypes import c_int32
from functools import cache
from pathlib import Path
from typing import Any

from mote.errors import NativeError
from mote.kernels.abi import ABI, SIGNATURES

_NAME = "libmote.dylib" if sys.platform == "darwin" else "libmote.so"
_REBUILD = "reinstall with `pip install .` (or -e .), which needs a C++17 compiler"


def library_path() -> Path:
    """The file to load. Raises NativeError with the folders looked in when there is none."""
    named = os.environ.get("MOTE_LIBRARY")
    if named:
        return Path(named)
    import mote.kernels

    folders = [Path(folder) for folder in mote.kernels.__path__]
    for folder in folders:
        if (folder / _NAME).is_file():
            return folder / _NAME
    raise NativeError(f"no {_NAME} in {', '.join(map(str, folders))}; {_REBUILD}")


@cache
def library() -> ctypes.CDLL:
    """The loaded library. Raises NativeError when it is missing, broken or of another interface."""
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.mote_abi.restype = c_int32
        loaded.mote_abi.argtypes = []
        abi = loaded.mote_abi()
        if abi != ABI:
            raise NativeError(f"{path} has interface {abi}, this package needs {ABI}; {_REBUILD}")
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise NativeError(f"{path} cannot be used ({error}); {_REBUILD}") from None
    return loaded


def last_error() -> NativeError:
    """What the library said about the call that just failed on this thread."""
    return NativeError(_text(library().mote_last_error()))


def check(status: int) -> None:
    """Raises NativeError with the library's message unless `status` is MOTE_OK."""
    if status != 0:
        raise last_error()


def info() -> dict[str, Any]:
    """What is loaded: path, version, abi, the ISA in use and those that this CPU could use, best first."""
    lib = library()
    isa = lib.mote_isa()
    if isa is None:
        raise last_error()
    return {
        "library": str(library_path()),
        "version": _text(lib.mote_version()),
        "abi": ABI,
        "isa": _text(isa),
        "isas": _text(lib.mote_isas()).split(),
    }


def select_isa(name: str | None = None) -> None:
    """Uses the kernels of one ISA ("scalar", "avx2", "avx512vl", "avxvnni", "avx512vnni", "neon") in the whole process.

    None goes back to the choice at start: MOTE_ISA, or the best that the CPU runs. Raises NativeError when
    they do not run here.
    """
    check(library().mote_select_isa((name or "").encode()))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
