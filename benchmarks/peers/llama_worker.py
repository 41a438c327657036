"""llama.cpp measured by `benchmarks.worker`, through the C API that llama-cpp-python exposes; stock settings."""

import argparse
import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.worker import serve


class Llama:
    """A GGUF file with one sequence."""

    def __init__(self, a: argparse.Namespace) -> None:
        # What it prints while loading would only stand in the way of the result.
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(a.model).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise SystemExit(f"llama_worker: {a.model} does not load")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = a.context
        options.n_threads = options.n_threads_batch = a.threads
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        self._vocab = a.vocab

    def prefill(self, ids: Sequence[int]) -> int:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        return self._decode(ids)

    def step(self, token: int) -> int:
        return self._decode([token])

    def _decode(self, ids: Sequence[int]) -> int:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(ids)))
        if status:
            raise SystemExit(f"llama_worker: llama_decode of {len(ids)} tokens returned {status}")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, -1), (self._vocab,))
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise SystemExit("llama_worker: logits are not finite")
        return best

    def facts(self) -> dict[str, Any]:
        return {"weight_bytes": int(llama_cpp.llama_model_size(self._model))}


if __name__ == "__main__":
    serve(Llama)
