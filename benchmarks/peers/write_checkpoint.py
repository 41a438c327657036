"""Writes packed checkpoints of ours with random weights in the shapes of Qwen2.5, for the benchmarks to open.

    python -m benchmarks.peers.write_checkpoint --dir runs/bench --shape 1.5b --experts 4 --codec base3
    python -m benchmarks.peers.write_checkpoint --dir runs/bench --shape 1.5b --experts 0 --linear bf16

The same tensors as `mote pack` writes for a Qwen2.5 language model (embedding and head tied), without a tokenizer: the
engine's prefill and step take ids. Integers are drawn for a few strips of each matrix and repeated, each matrix from
another place: a kernel's time does not depend on their values. Tensors are streamed, one in memory at a time; a
directory that is there already is kept.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import SHAPES, Shape
from mote.checkpoint.contract import MODEL_TYPE, MoteConfig
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.writer import write_checkpoint
from mote.ternary.codecs import CODECS
from mote.ternary.format import FULL_PRECISION, WeightFormat

LINEARS = ("int4", "int8", "bf16")
GROUP = 64
_STRIP_ROWS = 64
_DRAWN_STRIPS = 4


@dataclass(frozen=True, kw_only=True)
class Model:
    """What to write. experts: 0 for a dense model. linear: of shared expert and attention; head: of the tied table."""

    shape: str
    experts: int
    codec: str = "base3"
    linear: str = "int4"
    head: str = "int4"

    @property
    def directory_name(self) -> str:
        """Tells checkpoints with different tensors apart."""
        kind = f"mote{self.experts}-{self.codec}" if self.experts else "dense"
        return f"{self.shape}-{kind}-{self.linear}-{self.head}"

    @property
    def sizes(self) -> Shape:
        return SHAPES[self.shape]

    @property
    def precision(self) -> str:
        """For tables: what is stored in which format."""
        experts = f"{self.codec} experts, " if self.experts else ""
        return f"{experts}{self.linear}, head {self.head}"

    @property
    def token_bytes(self) -> int:
        """Bytes of weights that decoding one token reads: all but the experts that it is not routed to."""
        return sum(t.nbytes // (self.experts if ".experts." in t.name else 1) for t in Tensors(self).planned)

    @property
    def ffn_bytes(self) -> int:
        """Bytes of all feed-forward networks: shared and routed experts, scales, padding, routers."""
        return sum(t.nbytes for t in Tensors(self).planned if ".mlp." in t.name)


def number_format(name: str) -> WeightFormat:
    """Of matrices stored as one of `LINEARS`."""
    if name == "bf16":
        return FULL_PRECISION
    quantizer: Any = name
    return WeightFormat(quantizer=quantizer, scale="absmax", granularity="group", group=GROUP, activation="int8_group")


def config(model: Model) -> dict[str, Any]:
    """config.json: a Qwen2 model, and how its tensors are stored unless they are all bf16."""
    s = model.sizes
    plain = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        **{"hidden_size": s.hidden, "intermediate_size": s.ffn, "num_hidden_layers": s.layers},
        **{"num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim},
        **{"vocab_size": s.vocab, "max_position_embeddings": 4096, "rms_norm_eps": s.eps},
        "rope_parameters": {"rope_type": "default", "rope_theta": s.rope_base},
        **{"hidden_act": "silu", "tie_word_embeddings": True, "use_sliding_window": False, "dtype": "bfloat16"},
    }
    if not model.experts and model.linear == model.head == "bf16":
        return plain
    mixture: dict[str, Any] = {"layers": tuple(range(s.layers)), "num_experts": model.experts, "top_k": 1}
    mixture["codec"] = model.codec
    dense: dict[str, Any] = {"num_experts": 0, "top_k": 0, "routed": FULL_PRECISION}
    attention = number_format(model.linear)
    sizes: dict[str, Any] = {
        **{"hidden_size": s.hidden, "ffn_size": s.ffn, "vocab_size": s.vocab},
        **{"query_size": s.heads * s.head_dim, "key_value_size": s.kv_heads * s.head_dim},
    }
    contract = MoteConfig(
        state="packed",
        **(mixture if model.experts else dense),
        shared=attention,
        attention=attention,
        head=number_format(model.head),
        **sizes,
    )
    return {**plain, "model_type": MODEL_TYPE, "base_model_type": "qwen2", "quantization_config": contract.to_dict()}


class Tensors:
    """The tensors of a model, planned by name and drawn when asked for."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._random = torch.Generator().manual_seed(0)
        self._strips: dict[tuple[str, int], Tensor] = {}
        self._made: dict[str, tuple[PlannedTensor, tuple[str, int, int]]] = {}
        for name, planned, kind in self._all():
            self._made[name] = (planned, kind)

    @property
    def planned(self) -> list[PlannedTensor]:
        return [planned for planned, _ in self._made.values()]

    def draw(self, name: str) -> Tensor:
        """The tensor called `name`."""
        planned, (kind, rows, cols) = self._made[name]
        shape = planned.shape
        if kind == "ones":
            return torch.ones(shape, dtype=torch.bfloat16)
        if kind in ("f32", "bf16"):
            dtype = torch.float32 if kind == "f32" else torch.bfloat16
            some = torch.randn(min(rows, 256), cols, generator=self._random) * 0.5 * cols**-0.5
            return some.to(dtype).repeat(-(-rows // len(some)), 1)[:rows].view(shape)
        if kind == "scale":
            return torch.full(shape, cols**-0.5)
        if kind == "group_scale":
            return torch.full(shape, cols**-0.5 / 4, dtype=torch.bfloat16)
        strips = self._drawn(kind, cols)
        experts = shape[0] if len(shape) == 4 else 1
        number, start = experts * (rows // _STRIP_ROWS), int(torch.randint(_DRAWN_STRIPS, (), generator=self._random))
        return strips[(torch.arange(number) + start) % len(strips)].view(shape)

    def _drawn(self, codec: str, cols: int) -> Tensor:
        """A few packed strips [S, KG, 256] of matrices `cols` wide."""
        if (codec, cols) not in self._strips:
            levels, group = {"int4": (7, GROUP), "int8": (127, GROUP)}.get(codec, (1, 0))
            shape = (_DRAWN_STRIPS * _STRIP_ROWS, cols)
            q = torch.randint(-levels, levels + 1, shape, generator=self._random).to(torch.int8)
            self._strips[codec, cols] = CODECS[codec].pack(q, group)
        return self._strips[codec, cols]

    def _all(self) -> Iterator[tuple[str, PlannedTensor, tuple[str, int, int]]]:
        s, model = self._model.sizes, self._model
        hidden, query, kv = s.hidden, s.heads * s.head_dim, s.kv_heads * s.head_dim
        yield from self._linear("model.embed_tokens", model.head, s.vocab, hidden)
        yield from self._norm("model.norm", hidden)
        for layer in range(s.layers):
            prefix = f"model.layers.{layer}."
            yield from self._norm(f"{prefix}input_layernorm", hidden)
            yield from self._norm(f"{prefix}post_attention_layernorm", hidden)
            for name, rows, cols in (("q", query, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, query)):
                yield from self._linear(f"{prefix}self_attn.{name}_proj", model.linear, rows, cols)
                if name != "o":
                    bias = f"{prefix}self_attn.{name}_proj.bias"
                    yield bias, PlannedTensor(bias, "BF16", (rows,)), ("bf16", 1, rows)
            for name, rows, cols in (("gate", s.ffn, hidden), ("up", s.ffn, hidden), ("down", hidden, s.ffn)):
                yield from self._linear(f"{prefix}mlp.{name}_proj", model.linear, rows, cols)
                if model.experts:
                    yield from self._experts(f"{prefix}mlp.experts.{name}_proj", rows, cols)
            if model.experts:
                router = f"{prefix}mlp.router.weight"
                yield router, PlannedTensor(router, "F32", (model.experts, hidden)), ("f32", model.experts, hidden)

    def _norm(self, module: str, size: int) -> Iterator[tuple[str, PlannedTensor, tuple[str, int, int]]]:
        name = f"{module}.weight"
        yield name, PlannedTensor(name, "BF16", (size,)), ("ones", 1, size)

    def _linear(
        self, module: str, kind: str, rows: int, cols: int
    ) -> Iterator[tuple[str, PlannedTensor, tuple[str, int, int]]]:
        if kind == "bf16":
            name = f"{module}.weight"
            yield name, PlannedTensor(name, "BF16", (rows, cols)), ("bf16", rows, cols)
            return
        if rows % _STRIP_ROWS:
            raise SystemExit(f"write_checkpoint: {module} has {rows} rows, no multiple of {_STRIP_ROWS}")
        packed, scale = f"{module}.packed", f"{module}.scale"
        scales = (rows // _STRIP_ROWS, -(-cols // GROUP), _STRIP_ROWS)
        yield packed, PlannedTensor(packed, "U8", CODECS[kind].packed_shape(rows, cols, GROUP)), (kind, rows, cols)
        yield scale, PlannedTensor(scale, "BF16", scales), ("group_scale", rows, cols)

    def _experts(self, name: str, rows: int, cols: int) -> Iterator[tuple[str, PlannedTensor, tuple[str, int, int]]]:
        experts, codec = self._model.experts, self._model.codec
        shape = (experts, *CODECS[codec].packed_shape(rows, cols))
        yield f"{name}_packed", PlannedTensor(f"{name}_packed", "U8", shape), (codec, rows, cols)
        yield f"{name}_scale", PlannedTensor(f"{name}_scale", "F32", (experts,)), ("scale", rows, cols)


def write(model: Model, folder: Path) -> Path:
    """Writes the checkpoint into `folder`, unless it is there, and returns its path."""
    path = folder / model.directory_name
    if not path.exists():
        tensors = Tensors(model)
        lineage = Provenance.start("benchmark", config=model, seed=0)
        write_checkpoint(path, config=config(model), tensors=tensors.planned, produce=tensors.draw, lineage=lineage)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="1.5b")
    parser.add_argument("--experts", type=int, default=4, help="0: a dense model")
    parser.add_argument("--codec", choices=("base3", "2bit"), default="base3")
    parser.add_argument("--linear", choices=LINEARS, default="int4")
    parser.add_argument("--head", choices=LINEARS)
    a = parser.parse_args()
    model = Model(shape=a.shape, experts=a.experts, codec=a.codec, linear=a.linear, head=a.head or a.linear)
    path = write(model, a.dir)
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{path} {size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
