"""mote: a fused linear of csrc/mote.h, activations quantised inside, in every format."""

from ctypes import byref

import numpy as np
from numpy.typing import NDArray

from benchmarks.sides.product import Problem, Product, Unavailable
from mote.kernels.abi import FORMATS as CODES
from mote.kernels.abi import Matrix
from mote.kernels.library import info, library

FORMATS = ("2bit", "base3", "int4", "int8", "bf16")
_ACTIVATIONS = {"2bit": "int8", "base3": "int8", "int4": "int8 per group", "int8": "int8 per group", "bf16": "fp32"}
_GROUP = 64


def _check(status: int) -> None:
    if status:
        raise Unavailable(library().mote_last_error().decode())


def isa() -> str:
    """The kernels in use."""
    return str(info()["isa"])


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to nearest even, as 16-bit patterns."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _weights(name: str, problem: Problem) -> tuple[NDArray[np.uint8], NDArray[np.float32] | NDArray[np.uint16] | None]:
    """Bytes and scales of one matrix."""
    rows, cols = problem.q_NK.shape
    if name == "bf16":
        return bf16(problem.q_NK.astype(np.float32) * np.float32(problem.scale)).view(np.uint8).reshape(-1), None
    group = _GROUP if name.startswith("int") else 0
    size = library().mote_packed_bytes(CODES[name], rows, cols, group)
    if size < 0:
        raise Unavailable(library().mote_last_error().decode())
    data = np.empty(size, np.uint8)
    q = np.ascontiguousarray(problem.q_NK)
    _check(library().mote_pack(CODES[name], rows, cols, group, q.ctypes.data, cols, data.ctypes.data, size))
    if not group:
        return data, np.array([problem.scale], np.float32)
    strips, groups = -(-rows // 64), -(-cols // group)
    return data, bf16(np.full((strips, groups, 64), problem.scale, np.float32))


def product(name: str, problem: Problem) -> Product:
    """One of `FORMATS`; ternary formats have one scale a matrix, int4 and int8 one per 64 inputs."""
    multiply, (data, scale) = library().mote_linear_f32, _weights(name, problem)
    rows, cols = problem.q_NK.shape
    copies = np.tile(data, (problem.count, 1))
    tokens, x = len(problem.x_TK), np.ascontiguousarray(problem.x_TK)
    y = np.full((tokens, rows), np.nan, np.float32)
    matrices = (Matrix * problem.count)()
    for matrix, copy in zip(matrices, copies, strict=True):
        matrix.data, matrix.bytes, matrix.format = copy.ctypes.data, copy.nbytes, CODES[name]
        matrix.scale, matrix.scales = (None, 0) if scale is None else (scale.ctypes.data, scale.size)
        matrix.rows, matrix.cols, matrix.group = rows, cols, _GROUP if name.startswith("int") else 0
        matrix.granularity = 2 if matrix.group else 0

    def run(keep: tuple[object, ...] = (copies, scale, x)) -> NDArray[np.float32]:
        for matrix in matrices:
            _check(multiply(byref(matrix), x.ctypes.data, tokens, cols, y.ctypes.data, rows, problem.threads))
        return y

    label = {"2bit": "2.0 b", "base3": "1.6 b"}.get(name, f"{name}/{_GROUP}" if name != "bf16" else name)
    nbytes = data.nbytes + (0 if scale is None else scale.nbytes)
    return Product(run=run, nbytes=nbytes, precision=f"{label} x {_ACTIVATIONS[name]}")
