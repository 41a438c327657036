"""Writes GGUF files with random weights in the shapes of Qwen2.5, for llama.cpp to run beside us.

    python -m benchmarks.peers.write_gguf --dir runs/bench --shape 1.5b --experts 4 --expert-type TQ2_0
    python -m benchmarks.peers.write_gguf --dir runs/bench --shape 1.5b --experts 0 --linear-type Q4_0

runs in the peers' environment (`make bench-peers-setup`), which holds gguf and the ggml that quantises. With experts
the architecture is `bailingmoe`, which is MoTE's block exactly: an ungated shared expert beside top-1 routed ones,
gates not renormalised. Without it is `qwen2`, dense, embedding and head tied as in Qwen2.5. A head of type "usual" is
what llama.cpp's own converter chooses beside 4-bit weights: Q6_K, or Q8_0 where the width is no multiple of 256.
Experts' matrices whose width is none either are Q4_0 (gate and up of the 0.5B shape). Weights are drawn for 64 rows of
each matrix and repeated: a kernel's time does not depend on their values. Tensors are streamed, one in memory at a
time; a file that is there already is kept.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.shapes import SHAPES, Shape
from benchmarks.sides.ggml import library

KINDS = {"F32": 0, "BF16": 30, "Q4_0": 2, "Q8_0": 8, "Q6_K": 14, "TQ1_0": 34, "TQ2_0": 35}
_DRAWN_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Model:
    """What to write. experts: 0 for a dense model. linear (attention and shared expert), expert, head: ggml types."""

    shape: str
    experts: int
    linear: str = "Q4_0"
    expert: str = "TQ2_0"
    head: str = "usual"

    @property
    def file_name(self) -> str:
        """Tells files with different tensors apart."""
        kind = f"mote{self.experts}-{self.expert}" if self.experts else "dense"
        return f"{self.shape}-{kind}-{self.linear}-{self.head_type}.gguf"

    @property
    def sizes(self) -> Shape:
        return SHAPES[self.shape]

    def expert_type(self, cols: int) -> str:
        """The ggml type of routed experts' matrices of this width: TQ1_0 and TQ2_0 hold multiples of 256 only."""
        return "Q4_0" if self.expert.startswith("TQ") and cols % 256 else self.expert

    @property
    def precision(self) -> str:
        """For tables: what is stored in which type."""
        if not self.experts:
            return f"{self.linear}, head {self.head_type}"
        types = dict.fromkeys((self.expert_type(self.sizes.hidden), self.expert_type(self.sizes.ffn)))
        return f"{' and '.join(types)} experts, {self.linear}, head {self.head_type}"

    @property
    def head_type(self) -> str:
        """The ggml type of the head."""
        if self.head != "usual":
            return self.head
        if self.linear == "BF16":
            return "BF16"
        return "Q8_0" if self.sizes.hidden % 256 else "Q6_K"


Tensor = tuple[str, tuple[int, ...], str]
"""Name, shape in numpy's order, ggml type."""


def tensors(model: Model) -> list[Tensor]:
    """All tensors of the file."""
    s = model.sizes
    q, kv, h, f, e = s.heads * s.head_dim, s.kv_heads * s.head_dim, s.hidden, s.ffn, model.experts
    linear, up, down = model.linear, model.expert_type(h), model.expert_type(f)
    found: list[Tensor] = [("output_norm.weight", (h,), "F32")]
    if e:  # bailingmoe has no tied embeddings: the table for look-up is one of its own
        found += [("token_embd.weight", (s.vocab, h), linear), ("output.weight", (s.vocab, h), model.head_type)]
    else:
        found += [("token_embd.weight", (s.vocab, h), model.head_type)]
    for layer in range(s.layers):
        b = f"blk.{layer}."
        found += [(f"{b}attn_norm.weight", (h,), "F32"), (f"{b}ffn_norm.weight", (h,), "F32")]
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            found += [(f"{b}attn_{name}.weight", (rows, h), linear), (f"{b}attn_{name}.bias", (rows,), "F32")]
        found.append((f"{b}attn_output.weight", (h, q), linear))
        end = "_shexp" if e else ""
        found += [(f"{b}ffn_{name}{end}.weight", (f, h), linear) for name in ("gate", "up")]
        found.append((f"{b}ffn_down{end}.weight", (h, f), linear))
        if e:
            found += [(f"{b}ffn_{name}_exps.weight", (e, f, h), up) for name in ("gate", "up")]
            found += [(f"{b}ffn_down_exps.weight", (e, h, f), down), (f"{b}ffn_gate_inp.weight", (e, h), "F32")]
    return found


def describe(writer, model: Model) -> None:  # type: ignore[no-untyped-def]
    """The file's metadata."""
    s = model.sizes
    writer.add_string("tokenizer.ggml.model", "no_vocab")
    writer.add_vocab_size(s.vocab)
    writer.add_context_length(4096)
    writer.add_embedding_length(s.hidden)
    writer.add_block_count(s.layers)
    writer.add_feed_forward_length(s.ffn)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_rope_freq_base(s.rope_base)
    writer.add_rope_dimension_count(s.head_dim)
    writer.add_layer_norm_rms_eps(s.eps)
    writer.add_key_length(s.head_dim)
    writer.add_value_length(s.head_dim)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(1)
        writer.add_expert_feed_forward_length(s.ffn)
        writer.add_expert_shared_count(1)
        writer.add_leading_dense_block_count(0)
        writer.add_expert_weights_norm(False)
        writer.add_expert_weights_scale(1.0)


class Drawer:
    """Random tensors, quantised by ggml itself; those of one shape and type share their values."""

    def __init__(self, peers: Path) -> None:
        self._ggml = library(peers, "llama_cpp")
        self._random = np.random.default_rng(0)
        self._last: tuple[tuple[tuple[int, ...], str], NDArray[np.uint8]] | None = None

    def nbytes(self, shape: tuple[int, ...], kind: str) -> int:
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        return rows * int(self._ggml.ggml_row_size(KINDS[kind], shape[-1]))

    def draw(self, shape: tuple[int, ...], kind: str) -> NDArray[np.uint8]:
        """Bytes of a tensor."""
        if self._last is not None and self._last[0] == (shape, kind):
            return self._last[1]
        self._last = None  # free it before the next is made
        data = self._made(shape, kind)
        self._last = ((shape, kind), data)
        return data

    def _made(self, shape: tuple[int, ...], kind: str) -> NDArray[np.uint8]:
        width, rows = shape[-1], int(np.prod(shape[:-1], dtype=np.int64))
        if len(shape) == 1:
            return (1 + 0.1 * self._random.standard_normal(width)).astype(np.float32).view(np.uint8)
        drawn = min(rows, _DRAWN_ROWS)
        if kind.startswith("TQ"):
            values = self._random.integers(-1, 2, (drawn, width)).astype(np.float32) / np.float32(np.sqrt(width))
        else:
            values = self._random.standard_normal((drawn, width), dtype=np.float32) / np.float32(np.sqrt(width))
        if kind == "F32":
            return np.tile(values, (-(-rows // drawn), 1))[:rows].view(np.uint8)
        out = np.empty((drawn, self.nbytes((1, width), kind)), np.uint8)
        written = self._ggml.ggml_quantize_chunk(
            KINDS[kind], values.ctypes.data, out.ctypes.data, 0, drawn, width, None
        )
        if written != out.size:
            raise SystemExit(f"write_gguf: ggml cannot quantise rows of {width} to {kind}")
        return np.tile(out, (-(-rows // drawn), 1))[:rows]


def write(model: Model, folder: Path, peers: Path) -> Path:
    """Writes the model's file into `folder`, unless it is there, and returns its path."""
    import gguf

    for _, shape, kind in tensors(model):
        block = 256 if kind[:2] in ("TQ", "Q6") else 32 if kind[0] == "Q" else 1
        if shape[-1] % block:
            raise SystemExit(
                f"write_gguf: {kind} needs rows that are multiples of {block}, not {shape[-1]}; choose Q4_0"
            )
    path = folder / model.file_name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    drawer = Drawer(peers)
    writer = gguf.GGUFWriter(str(partial), "bailingmoe" if model.experts else "qwen2")
    describe(writer, model)
    # Grouped by shape and type, so that each kind of tensor is drawn once; readers find tensors by name.
    planned = sorted(tensors(model), key=lambda tensor: (tensor[2], tensor[1]))
    for name, shape, kind in planned:
        dtype = np.dtype(np.float32) if kind == "F32" else np.dtype(np.uint8)
        width = shape[-1] if kind == "F32" else drawer.nbytes((1, shape[-1]), kind)
        raw = None if kind == "F32" else gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(name, (*shape[:-1], width), dtype, drawer.nbytes(shape, kind), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape, kind in planned:
        writer.write_tensor_data(drawer.draw(shape, kind))
    writer.close()
    return partial.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="1.5b")
    parser.add_argument("--experts", type=int, default=4, help="0: a dense model")
    parser.add_argument("--linear-type", choices=("Q4_0", "Q8_0", "BF16"), default="Q4_0")
    parser.add_argument("--expert-type", choices=("TQ2_0", "TQ1_0", "Q4_0"), default="TQ2_0")
    parser.add_argument("--head-type", choices=("usual", *KINDS), default="usual")
    a = parser.parse_args()
    model = Model(shape=a.shape, experts=a.experts, linear=a.linear_type, expert=a.expert_type, head=a.head_type)
    path = write(model, a.dir, Path(sys.prefix))
    print(f"{path} {path.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
