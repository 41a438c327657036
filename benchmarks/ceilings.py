"""The machine's own limits, measured in the run that quotes them: read bandwidth and peak of integer dot products.

The bandwidth is that of the fastest of several plain loops, and moves with the host's other guests: a share of it can
come out above 1. The peak is the clock's, hence of the fastest round; what is slower was interrupted.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.report import seconds

SOURCE = Path(__file__).resolve().parent / "ceilings.cpp"
_DOT_STEPS = 2_000_000
_LOOPS = tuple((streams, ahead) for streams in (1, 2, 4, 8) for ahead in (0, 1))
"""Places that are read at once, and whether the next page is asked for."""


class Ceilings:
    """ceilings.cpp, compiled for this machine by the system's compiler."""

    def __init__(self, megabytes: int) -> None:
        compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            raise SystemExit("ceilings: no C++ compiler found; install one (apt install g++)")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "ceilings.so"
            flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"]
            subprocess.run([compiler, *flags, str(SOURCE), "-o", str(out)], check=True)
            self._library = ctypes.CDLL(str(out))
        self._library.ceiling_read.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_int32] * 3]
        self._library.ceiling_read.restype = ctypes.c_uint64
        self._library.ceiling_dot.argtypes = [ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p]
        self._library.ceiling_dot.restype = ctypes.c_int64
        self._library.ceiling_dot_name.restype = ctypes.c_char_p
        self._memory = np.ones(megabytes << 20, np.uint8)
        self._sink = np.zeros(64 * 16, np.int32)  # a row for each thread

    @property
    def dot_name(self) -> str:
        """The instructions whose peak `dot` is."""
        return str(self._library.ceiling_dot_name().decode())

    def reading(self, threads: int) -> dict[str, Callable[[], object]]:
        """Loops that read all the memory once, each in its way; the work of one is `read_bytes`."""
        pointer, size = self._memory.ctypes.data, self._memory.size
        return {
            f"{streams} streams{', page ahead' * ahead}": partial(
                self._library.ceiling_read, pointer, size, threads, streams, ahead
            )
            for streams, ahead in _LOOPS
        }

    def bandwidth(self, threads: int) -> float:
        """Bytes a second of the loop that is fastest now."""
        return self.read_bytes / min(map(seconds, self.reading(threads).values()))

    @property
    def read_bytes(self) -> int:
        """Bytes that one loop of `reading` reads."""
        return self._memory.size

    def dotting(self, threads: int) -> Callable[[], object]:
        """A function that multiplies 8-bit operands in registers; its work is `dot_work`."""
        return lambda: self._library.ceiling_dot(_DOT_STEPS, threads, self._sink.ctypes.data)

    def dot_work(self, threads: int) -> int:
        """Multiply-adds that one call of `dotting` does."""
        return int(self._library.ceiling_dot(1, threads, self._sink.ctypes.data)) * _DOT_STEPS
