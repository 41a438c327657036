"""ggml: its matrix product `ggml_mul_mat`, from the libraries of llama-cpp-python or ik-llama-cpp-python, by ctypes.

One graph holds a product for every matrix; computing it quantises the activations and calls the type's vec_dot, or its
tiled product, exactly as the engine does. llama.cpp keeps Q4_0 in an order of its own (its "repack" buffers), so the
weights are loaded into such a buffer where the CPU backend offers one that takes the type.
"""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.sides.product import Floats, Problem, Product, Unavailable

TYPES = {"Q4_0": 2, "Q8_0": 8, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "IQ2_BN": 135, "IQ2_BN_R4": 335}
_F32 = 0
REPACKED = ("Q4_0",)
_GRAPH_NODES = 4096

_SIGNATURES = {
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph_custom": (c_void_p, [c_void_p, c_size_t, c_bool]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "ggml_free": (None, [c_void_p]),
    "ggml_graph_compute_with_ctx": (c_int, [c_void_p, c_void_p, c_int]),
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_get_device": (c_void_p, [c_void_p]),
    "ggml_backend_dev_backend_reg": (c_void_p, [c_void_p]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_buft_name": (c_char_p, [c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
}


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class _Plan(ctypes.Structure):
    """struct ggml_cplan: its first two fields are all that is read here; the rest is passed back as it came."""

    _fields_ = (("work_size", c_size_t), ("work_data", c_void_p), ("rest", ctypes.c_uint8 * 112))


_LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_silent = _LOG(lambda level, text, data: None)


class Library:
    """The functions of one build of ggml, wherever its shared libraries define them."""

    def __init__(self, folder: Path) -> None:
        # Their dependencies are found beside them by rpath; the base comes first so that each resolves.
        files = [
            path for name in ("libggml-base.so", "libggml-cpu.so", "libggml.so") if (path := folder / name).exists()
        ]
        if not files:
            raise Unavailable(f"no libggml in {folder}; run make bench-peers-setup")
        try:
            self._loaded = [ctypes.CDLL(str(path)) for path in files]
        except OSError as error:
            raise Unavailable(f"{folder}: {error}") from None
        init = self.function("ggml_init")
        init.argtypes, init.restype = [_InitParams], c_void_p
        self.init = init
        if (log := self.function("ggml_log_set", missing_ok=True)) is not None:
            log(_silent, None)
        for name, (result, arguments) in _SIGNATURES.items():
            if (function := self.function(name, missing_ok=True)) is not None:
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)

    def function(self, name: str, missing_ok: bool = False):  # type: ignore[no-untyped-def]
        """The function called `name`. Raises Unavailable."""
        for library in self._loaded:
            if hasattr(library, name):
                return getattr(library, name)
        if missing_ok:
            return None
        raise Unavailable(f"this build of ggml has no {name}")

    if TYPE_CHECKING:  # functions of `_SIGNATURES`, set by name

        def __getattr__(self, name: str) -> Any: ...

    def context(self, nbytes: int, allocate: bool) -> int:
        """A context of tensors, with memory for their data if `allocate`."""
        context = self.init(_InitParams(nbytes, None, not allocate))
        if not context:
            raise Unavailable(f"ggml cannot allocate {nbytes} bytes")
        return int(context)

    def repack_buffer_type(self) -> int | None:
        """The buffer type of the CPU backend that keeps weights in an order of its own, if it has one."""
        device = self.ggml_backend_get_device(self.ggml_backend_cpu_init())
        registry = self.ggml_backend_dev_backend_reg(device)
        address = self.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return None
        found = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device)
        for i in range(16):
            if not found or not found[i]:
                return None
            if b"REPACK" in self.ggml_backend_buft_name(found[i]):
                return int(found[i])
        return None


@cache
def library(peers: Path, package: str) -> Library:
    """ggml inside `package` ("llama_cpp", "ik_llama_cpp") of the peers' environment. Raises Unavailable."""
    folders = sorted(peers.glob(f"lib/python*/site-packages/{package}/lib"))
    if not folders:
        raise Unavailable(f"{package} is not installed in {peers}; run make bench-peers-setup")
    return Library(folders[0])


def _quantized(ggml: Library, kind: int, problem: Problem) -> NDArray[np.uint8]:
    rows, cols = problem.q_NK.shape
    weights = problem.q_NK.astype(np.float32) * np.float32(problem.scale)
    out = np.empty(rows * ggml.ggml_row_size(kind, cols), np.uint8)
    if ggml.ggml_quantize_chunk(kind, weights.ctypes.data, out.ctypes.data, 0, rows, cols, None) != out.size:
        raise Unavailable(f"ggml cannot quantise {rows} x {cols} to type {kind}")
    return out


def product(name: str, problem: Problem, peers: Path, package: str = "llama_cpp") -> Product:
    """One of `TYPES`. Raises Unavailable where this build, or the matrix's width, does not allow it."""
    ggml, kind = library(peers, package), TYPES[name]
    rows, cols = problem.q_NK.shape
    if name.startswith("TQ") and cols % 256:
        raise Unavailable(f"{name} needs rows that are multiples of 256, not {cols}")
    data, tokens = _quantized(ggml, kind, problem), len(problem.x_TK)
    buffer_type = ggml.repack_buffer_type() if name in REPACKED and package == "llama_cpp" else None
    buffer = None
    room = problem.count * (data.size + 4096) + (1 << 20)
    weights = ggml.context(1 << 20 if buffer_type else room, allocate=buffer_type is None)
    matrices = [ggml.ggml_new_tensor_2d(weights, kind, cols, rows) for _ in range(problem.count)]
    if buffer_type:
        buffer = ggml.ggml_backend_alloc_ctx_tensors_from_buft(weights, buffer_type)
        for matrix in matrices:
            ggml.ggml_backend_tensor_set(matrix, data.ctypes.data, 0, data.size)
    else:
        for matrix in matrices:
            ctypes.memmove(ggml.ggml_get_data(matrix), data.ctypes.data, data.size)
    # Outputs, graph and work space; the work space is one quantised copy of x.
    outputs = problem.count * (rows * tokens * 4 + 4096)
    work = ggml.context(outputs + 16 * tokens * cols + (64 << 20), allocate=True)
    x_tensor = ggml.ggml_new_tensor_2d(work, _F32, cols, tokens)
    x = np.ascontiguousarray(problem.x_TK)
    ctypes.memmove(ggml.ggml_get_data(x_tensor), x.ctypes.data, x.nbytes)
    graph = ggml.ggml_new_graph_custom(work, _GRAPH_NODES, False)
    products = [ggml.ggml_mul_mat(work, matrix, x_tensor) for matrix in matrices]
    for node in products:
        ggml.ggml_build_forward_expand(graph, node)
    y = np.ctypeslib.as_array((ctypes.c_float * (rows * tokens)).from_address(ggml.ggml_get_data(products[-1])))
    run = _planned(ggml, graph, problem, y.reshape(tokens, rows), name)

    def free() -> None:
        if buffer is not None:
            ggml.ggml_backend_buffer_free(buffer)
        ggml.ggml_free(work)
        ggml.ggml_free(weights)

    precision = f"{name} x int8" if name != "BF16" else "bf16 x bf16"
    return Product(run=run, nbytes=data.size, precision=precision, free=free)


def _planned(ggml: Library, graph: int, problem: Problem, y: Floats, name: str) -> Callable[[], Floats]:
    """Computes the graph, with work space allocated once, as an engine does."""
    plan_of, compute = ggml.function("ggml_graph_plan"), ggml.function("ggml_graph_compute")
    plan_of.restype, plan_of.argtypes = _Plan, [c_void_p, c_int, c_void_p]
    compute.restype, compute.argtypes = c_int, [c_void_p, POINTER(_Plan)]
    plan = plan_of(graph, problem.threads, None)
    space = np.empty(plan.work_size + 64, np.uint8)
    plan.work_data = space.ctypes.data

    def run(keep: object = space) -> Floats:
        if compute(graph, ctypes.byref(plan)):
            raise SystemExit(f"kernels: ggml could not compute {name}")
        return y

    return run
