"""litespark-inference: its compiled kernel (2 bits a weight, rows one after the other), through ctypes."""

import ctypes
from ctypes import c_float, c_int, c_void_p
from pathlib import Path

import numpy as np

from benchmarks.sides.product import Floats, Problem, Product, Unavailable

_MOST_TOKENS = 64  # of one call of its kernel for several tokens


def _load(peers: Path) -> tuple[ctypes.CDLL, str]:
    found = sorted(peers.glob("lib/python*/site-packages/litespark_inference/torchless/_matmul_lut_*.so"))
    if not found:
        raise Unavailable(f"no compiled litespark-inference in {peers}; run make bench-peers-setup")
    return ctypes.CDLL(str(found[0])), found[0].name.removeprefix("_matmul_lut_").split(".")[0]


def product(problem: Problem, peers: Path) -> Product:
    """One scale a matrix, activations quantised per token inside. Raises Unavailable."""
    library, isa = _load(peers)
    quantize = getattr(library, f"quantize_activation_{isa}")
    quantize.argtypes, quantize.restype = [c_void_p, c_void_p, c_int], c_float
    one, many = getattr(library, f"matmul_lut_{isa}_m1"), getattr(library, f"matmul_lut_{isa}_mT")
    one.argtypes = [c_void_p, c_void_p, c_float, c_float, c_void_p, c_int, c_int]
    many.argtypes = [c_void_p, c_void_p, c_void_p, c_float, c_void_p, c_int, c_int, c_int]
    one.restype = many.restype = None
    library.omp_set_num_threads(problem.threads)
    rows, cols = problem.q_NK.shape
    digits = (problem.q_NK + 1).astype(np.uint8).reshape(rows, -1, 4)
    packed = (digits << np.array([0, 2, 4, 6], np.uint8)).sum(2, dtype=np.uint8)
    copies = np.tile(packed, (problem.count, 1, 1))
    tokens, x = len(problem.x_TK), np.ascontiguousarray(problem.x_TK)
    x_q, s = np.empty((tokens, cols), np.int8), np.empty(tokens, np.float32)
    y = np.full((tokens, rows), np.nan, np.float32)

    def run() -> Floats:
        for t in range(tokens):
            s[t] = quantize(x.ctypes.data + t * cols * 4, x_q.ctypes.data + t * cols, cols)
        for w in copies:
            if tokens == 1:
                one(x_q.ctypes.data, w.ctypes.data, problem.scale, s[0], y.ctypes.data, rows, cols)
                continue
            for t in range(0, tokens, _MOST_TOKENS):
                x_at, s_at, y_at = x_q[t:].ctypes.data, s[t:].ctypes.data, y[t:].ctypes.data
                n = min(_MOST_TOKENS, tokens - t)
                many(x_at, s_at, w.ctypes.data, problem.scale, y_at, n, rows, cols)
        return y

    return Product(run=run, nbytes=packed.nbytes, precision="2.0 b x int8")
