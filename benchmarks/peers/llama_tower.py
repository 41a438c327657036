"""llama.cpp's own vision tower, timed: a file "mmproj" with random weights in the shape of `tower.py`, through libmtmd.

    .venv-peers/bin/python -m benchmarks.peers.llama_tower runs/bench/1.5b-dense-Q4_0-Q6_K.gguf --threads 1

The model is any of `write_gguf`; the tower's files, one for each type of matrix in `TYPES`, are written beside it and
kept. Types with blocks do not fit its 4304 inputs.
"""

import argparse
import ctypes
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
IMAGE, PATCH = 378, 14
TYPES = ("BF16", "F16")


def tensors(width: int) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Name, shape and whether it is a matrix, of every tensor of the file. width: of the language model."""
    h, f = SIZES["hidden_size"], SIZES["intermediate_size"]
    yield "v.patch_embd.weight", (h, 3, PATCH, PATCH), False
    yield "v.patch_embd.bias", (h,), False
    yield "v.position_embd.weight", ((IMAGE // PATCH) ** 2, h), False
    for layer in range(SIZES["num_hidden_layers"]):
        b = f"v.blk.{layer}."
        shapes = {name: (h, h) for name in ("attn_q", "attn_k", "attn_v", "attn_out")}
        for name, shape in {**shapes, "ffn_up": (f, h), "ffn_down": (h, f)}.items():
            yield f"{b}{name}.weight", shape, True
            yield f"{b}{name}.bias", shape[:1], False
        for name in ("ln1", "ln2"):
            yield f"{b}{name}.weight", (h,), False
            yield f"{b}{name}.bias", (h,), False
    for name, shape in (("mm.0", (width, h)), ("mm.2", (width, width))):
        yield f"{name}.weight", shape, True
        yield f"{name}.bias", shape[:1], False


def write(path: Path, width: int, kind: str) -> None:
    """The tower, with matrices of one of `TYPES`."""
    import gguf

    writer = gguf.GGUFWriter(str(path.with_suffix(".partial")), "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(width)
    writer.add_vision_image_size(IMAGE)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(SIZES["hidden_size"])
    writer.add_vision_feed_forward_length(SIZES["intermediate_size"])
    writer.add_vision_block_count(SIZES["num_hidden_layers"])
    writer.add_array("clip.vision.feature_layer", [SIZES["num_hidden_layers"]])
    writer.add_vision_head_count(SIZES["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_use_gelu(True)
    random = np.random.default_rng(0)
    for name, shape, matrix in tensors(width):
        values = random.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
        if matrix:
            dtype = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values, dtype), raw_dtype=dtype)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".partial").rename(path)


def measure(model_path: Path, kind: str, threads: int, repeats: int) -> list[float]:
    """Seconds of encoding one picture, the first, which also allocates, left out."""
    import llama_cpp
    from llama_cpp import mtmd_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    mtmd_cpp.mtmd_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(model_path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama_tower: {model_path} does not load")
    width = llama_cpp.llama_model_n_embd(model)
    tower = model_path.with_name(f"mmproj-so400m-{width}-{kind}.gguf")
    if not tower.exists():
        write(tower, width, kind)
    params = mtmd_cpp.mtmd_context_params_default()
    params.use_gpu, params.n_threads = False, threads
    context = mtmd_cpp.mtmd_init_from_file(str(tower).encode(), model, params)
    if not context:
        raise SystemExit(f"llama_tower: {tower} does not load")
    chunk = _chunk(mtmd_cpp, context)
    found = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        if status := mtmd_cpp.mtmd_encode_chunk(context, chunk):
            raise SystemExit(f"llama_tower: mtmd_encode_chunk returned {status}")
        found.append(time.perf_counter() - begun)
    count = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
    rows = np.ctypeslib.as_array(mtmd_cpp.mtmd_get_output_embd(context), (count, width))
    if count != (IMAGE // PATCH) ** 2 or not np.isfinite(rows).all():
        raise SystemExit(f"llama_tower: {count} tokens, finite: {np.isfinite(rows).all()}")
    return found[1:]


def _chunk(mtmd_cpp: Any, context: Any) -> Any:
    """A grey picture, prepared."""
    data = bytes([128]) * (IMAGE * IMAGE * 3)
    bitmap = mtmd_cpp.mtmd_bitmap_init(IMAGE, IMAGE, (ctypes.c_uint8 * len(data)).from_buffer_copy(data))
    marker = mtmd_cpp.mtmd_default_marker()
    text = mtmd_cpp.mtmd_input_text(marker, len(marker), False, True)
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    if status := mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1):
        raise SystemExit(f"llama_tower: mtmd_tokenize returned {status}")
    for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
        chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, index)
        if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
            return chunk
    raise SystemExit("llama_tower: no picture among the chunks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    print(json.dumps({f"llama.cpp {kind}": measure(a.model, kind, a.threads, a.repeats) for kind in TYPES}))


if __name__ == "__main__":
    main()
