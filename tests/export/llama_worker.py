"""The other side of `make test-export`: llama.cpp through llama-cpp-python, in an environment of its own.

    .venv-export/bin/python tests/export/llama_worker.py job.json result.npz

The job is {"model": path, "kv": "f32"|"f16", "threads": n, "steps": [...]}; step i leaves arrays "i" or "i.<name>":

    {"do": "tokenize", "text": "...", "special": true}            ids
    {"do": "render", "messages": [...]}                           ids of the file's chat template, rendered
    {"do": "logits", "ids": [...]}                                fp32 [T, V]
    {"do": "greedy", "ids": [...], "tokens": n}                   i.ids, i.margin: top logit less the second
    {"do": "see", "mmproj": path, "image": path of uint8 [h, w, 3] .npy}      embeddings fp32 [I, H]
    {"do": "mixed", "parts": [[ids], path of fp32 [I, H] .npy, [ids]]}        logits fp32 [V] after the last part

Nothing of mote is imported here.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

_silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
F32, F16 = 0, 1


class Side:
    """One GGUF file with one sequence."""

    def __init__(self, job: dict[str, Any]) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(job["model"].encode(), model)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {job['model']}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.width = llama_cpp.llama_model_n_embd(self.model)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = 2048
        options.n_threads = options.n_threads_batch = job.get("threads", 1)
        options.type_k = options.type_v = F32 if job.get("kv", "f32") == "f32" else F16
        options.flash_attn_type = 0
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise SystemExit("llama.cpp makes no context")

    def tokenize(self, text: str, special: bool) -> list[int]:
        data = text.encode()
        out = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), out, len(out), True, special)
        if count < 0:
            raise SystemExit(f"llama_tokenize returned {count}")
        return list(out[:count])

    def render(self, messages: list[dict[str, str]]) -> list[int]:
        from jinja2 import Environment

        buffer = ctypes.create_string_buffer(1 << 20)
        name = b"tokenizer.chat_template"
        if llama_cpp.llama_model_meta_val_str(self.model, name, buffer, len(buffer)) < 0:
            raise SystemExit("the file has no chat template")
        template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(buffer.value.decode())
        return self.tokenize(template.render(messages=messages, add_generation_prompt=True), True)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def decode(self, part: list[int] | np.ndarray, start: int, every: bool = False) -> np.ndarray:
        """Logits of the last token [1, V], or of `every` one [T, V], after tokens or embeddings at `start`."""
        count, floats = len(part), not isinstance(part, list)
        batch = llama_cpp.llama_batch_init(count, self.width if floats else 0, 1)
        batch.n_tokens = count
        for i in range(count):
            if not floats:
                batch.token[i] = part[i]
            batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = start + i, 1, 0
            batch.logits[i] = every or i == count - 1
        if floats:
            rows = np.ascontiguousarray(part, dtype=np.float32)
            ctypes.memmove(batch.embd, rows.ctypes.data, rows.nbytes)
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if status:
            raise SystemExit(f"llama_decode of {count} tokens returned {status}")
        places = range(count) if every else [-1]
        rows = [llama_cpp.llama_get_logits_ith(self.context, i) for i in places]
        return np.stack([np.ctypeslib.as_array(row, (self.size,)).copy() for row in rows])

    def greedy(self, ids: list[int], tokens: int) -> tuple[list[int], list[float]]:
        self.clear()
        logits, found, margins = self.decode(ids, 0)[0], list[int](), list[float]()
        for _ in range(tokens):
            second, first = np.partition(logits, -2)[-2:]
            found.append(int(logits.argmax()))
            margins.append(float(first - second))
            if llama_cpp.llama_vocab_is_eog(self.vocab, found[-1]):
                break
            logits = self.decode([found[-1]], len(ids) + len(found) - 1)[0]
        return found, margins

    def see(self, mmproj: str, image: str) -> np.ndarray:
        from llama_cpp import mtmd_cpp

        mtmd_cpp.mtmd_log_set(_silent, ctypes.c_void_p(0))
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu, params.warmup, params.n_threads, params.flash_attn_type = False, False, 1, 0
        context = mtmd_cpp.mtmd_init_from_file(mmproj.encode(), self.model, params)
        if not context:
            raise SystemExit(f"llama.cpp does not load {mmproj}")
        pixels = np.load(image)
        data = pixels.tobytes()
        bitmap = mtmd_cpp.mtmd_bitmap_init(
            pixels.shape[1], pixels.shape[0], (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        )
        marker = mtmd_cpp.mtmd_default_marker()
        text = mtmd_cpp.mtmd_input_text(marker, len(marker), False, True)
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        if status := mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1):
            raise SystemExit(f"mtmd_tokenize returned {status}")
        rows = []
        for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
            chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, index)
            if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                continue
            if status := mtmd_cpp.mtmd_encode_chunk(context, chunk):
                raise SystemExit(f"mtmd_encode_chunk returned {status}")
            count = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
            found = mtmd_cpp.mtmd_get_output_embd(context)
            rows.append(np.ctypeslib.as_array(found, (count, self.width)).copy())
        return np.concatenate(rows)

    def mixed(self, parts: list[Any]) -> np.ndarray:
        self.clear()
        start, logits = 0, np.empty((0, self.size))
        for part in parts:
            rows = np.load(part) if isinstance(part, str) else part
            logits = self.decode(rows, start)
            start += len(rows)
        return logits[-1]


def main(job: str, out: str) -> None:
    plan = json.loads(Path(job).read_text())
    side, found = Side(plan), dict[str, Any]()
    for index, step in enumerate(plan["steps"]):
        do = step["do"]
        if do == "tokenize":
            found[str(index)] = side.tokenize(step["text"], step.get("special", True))
        elif do == "render":
            found[str(index)] = side.render(step["messages"])
        elif do == "logits":
            side.clear()
            found[str(index)] = side.decode(step["ids"], 0, every=True)
        elif do == "greedy":
            found[f"{index}.ids"], found[f"{index}.margin"] = side.greedy(step["ids"], step["tokens"])
        elif do == "see":
            found[str(index)] = side.see(step["mmproj"], step["image"])
        elif do == "mixed":
            found[str(index)] = side.mixed(step["parts"])
    np.savez(out, **{name: np.asarray(value) for name, value in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
