"""`mote export gguf`: the GGUF file of a MoTE language model, in llama.cpp's architecture `bailingmoe`.

That architecture is MoTE's block: an ungated shared expert beside experts that a softmax router chooses, their gates as
they are (or renormalised, as the checkpoint says). What differs from Hugging Face's layout:

- positions turn neighbouring pairs of a head's inputs, where Llama and Qwen turn its two halves: rows (and biases) of q
  and k change their order, [head, 2, d / 2] -> [head, d / 2, 2];
- there is no tied head: the table of tokens stands twice in the file;
- every layer has a mixture;
- ggml's scales are fp16.

Legend: E experts, N rows, K columns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mote.errors import FormatError, UnsupportedModelError
from mote.export.config import GgufConfig
from mote.export.decoder import SWIGLU, Decoder, open_decoder
from mote.export.fit import Choices, write
from mote.export.ggml import TYPES, Bytes, GgmlType
from mote.export.matrices import Integers, Matrix, Stored
from mote.export.mmproj import mmproj_path, plan_vision, resizing_note, why_no_vision
from mote.export.stream import GgufFile, GgufTensor, gguf_library, write_files
from mote.export.tokenizer import Vocabulary, read_vocabulary

ARCH = "bailingmoe"
_PIECE = 1 << 24
"""Weights that are converted at once."""


@dataclass(frozen=True, kw_only=True)
class GgufExport:
    """What was written. types: ggml types by part; notes: what is not as it was asked for, or differs in llama.cpp;
    mmproj: file of the vision tower, or None, and then no_mmproj says why ("" for a model without one)."""

    path: Path
    nbytes: int
    types: dict[str, list[str]]
    notes: list[str]
    mmproj: Path | None = None
    mmproj_nbytes: int = 0
    no_mmproj: str = ""


def export_gguf(
    checkpoint: Path,
    out: Path,
    config: GgufConfig,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> GgufExport:
    """Writes the packed or up-cycled `checkpoint` as the file `out`, and its vision tower beside it as mmproj-<out>
    where llama.cpp knows that tower.

    progress: is told, after each piece, (its bytes, those of all). Raises CheckpointError (damaged, dense, disk full,
    `out` in use without force), UnsupportedModelError (no equivalent in `bailingmoe`) or FormatError (a type that a
    matrix does not go into); then nothing was written.
    """
    gguf_library()
    decoder = open_decoder(str(checkpoint))
    if reason := why_not(decoder):
        raise UnsupportedModelError(f"{checkpoint}: {reason}")
    vocabulary = read_vocabulary(decoder.checkpoint, decoder.text, decoder.vocab)
    choices = Choices(config)
    plan = Plan(decoder, choices)
    files = [GgufFile(path=out, arch=ARCH, describe=partial(_describe, decoder, vocabulary), tensors=plan.tensors)]
    no_vision = why_no_vision(decoder)
    if no_vision is None:
        files.append(plan_vision(decoder, choices, mmproj_path(out)))
    write_files(files, source=checkpoint, force=force, progress=progress)
    return GgufExport(
        path=out,
        nbytes=out.stat().st_size,
        types={part: sorted(names) for part, names in choices.types.items()},
        notes=[*choices.notes, *vocabulary.notes, *_vision_notes(decoder, out, written=len(files) > 1)],
        mmproj=files[1].path if len(files) > 1 else None,
        mmproj_nbytes=files[1].path.stat().st_size if len(files) > 1 else 0,
        no_mmproj=no_vision or "",
    )


def _vision_notes(decoder: Decoder, out: Path, *, written: bool) -> list[str]:
    if written:
        return [resizing_note(decoder)]
    beside = mmproj_path(out)
    return [f"{beside} is of an earlier export and does not belong to this model; remove it"] if beside.exists() else []


def why_not(decoder: Decoder) -> str:
    """What `bailingmoe` lacks, or ""."""
    dense = [i for i in range(len(decoder.prefixes)) if not decoder.mixed(i)]
    if dense:
        return (
            f"layers {dense[0]} and {len(dense) - 1} more have no mixture, and bailingmoe has one in every layer; "
            "export hf --as qwen2_moe takes such models"
        )
    return ""


@dataclass
class Plan:
    """All tensors of the language model's file, in order."""

    decoder: Decoder
    choices: Choices
    tensors: list[GgufTensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        decoder, names = self.decoder, self.decoder.checkpoint.tensors
        table = decoder.matrices.stored(decoder.embedding, decoder.vocab, decoder.hidden)
        self._matrix("token_embd", decoder.embedding, table, "head")
        head = decoder.head or decoder.embedding
        self._matrix("output", head, decoder.matrices.stored(head, decoder.vocab, decoder.hidden), "head")
        self._floats("output_norm.weight", f"{decoder.stack}norm.weight", (decoder.hidden,))
        for layer, prefix in enumerate(decoder.prefixes):
            block = f"blk.{layer}."
            self._floats(f"{block}attn_norm.weight", f"{prefix}input_layernorm.weight", (decoder.hidden,))
            self._floats(f"{block}ffn_norm.weight", f"{prefix}post_attention_layernorm.weight", (decoder.hidden,))
            for short, module, stored in decoder.attention(prefix):
                order = interleaved(stored.rows, decoder.head_dim) if short in "qk" else None
                name = f"{block}attn_{short}" if short != "o" else f"{block}attn_output"
                self._matrix(name, module, stored, "attention", order)
                if f"{module}.bias" in names:
                    self._floats(f"{name}.bias", f"{module}.bias", (stored.rows,), order)
            router = (decoder.mote.num_experts, decoder.hidden)
            self._floats(f"{block}ffn_gate_inp.weight", f"{prefix}mlp.router.weight", router)
            for short in SWIGLU:
                rows, cols = decoder.size(short)
                module = f"{prefix}mlp.{short}_proj"
                self._matrix(f"{block}ffn_{short}_shexp", module, decoder.matrices.stored(module, rows, cols), "shared")
                self._experts(f"{block}ffn_{short}_exps", f"{prefix}mlp.experts.{short}_proj", rows, cols)

    def _matrix(
        self, name: str, module: str, stored: Stored, part: str, order: NDArray[np.int64] | None = None
    ) -> None:
        kind = self.choices.choose(part, stored, name)

        def produce() -> Iterator[Bytes]:
            matrix = self.decoder.matrices.read(module, stored)
            yield from pieces(matrix if order is None else _in_order(matrix, order), kind, module)

        self._add(f"{name}.weight", (stored.rows, stored.cols), kind, produce)

    def _experts(self, name: str, stack: str, rows: int, cols: int) -> None:
        decoder, experts = self.decoder, self.decoder.mote.num_experts
        stored = decoder.matrices.stored_expert(stack, rows, cols)
        kind = self.choices.choose("experts", stored, name)

        def produce() -> Iterator[Bytes]:
            for expert in range(experts):
                yield from pieces(decoder.matrices.read_expert(stack, expert, stored), kind, stack)

        self._add(f"{name}.weight", (experts, rows, cols), kind, produce)

    def _floats(self, name: str, tensor: str, shape: tuple[int, ...], order: NDArray[np.int64] | None = None) -> None:
        """A small tensor, which stays in F32. Raises UnsupportedModelError for another shape."""
        found = self.decoder.checkpoint.info(tensor).shape
        if found != shape:
            raise UnsupportedModelError(f"{tensor} is {list(found)}, looked for {list(shape)}")

        def produce() -> Iterator[Bytes]:
            values = self.decoder.matrices.floats(tensor)
            yield np.ascontiguousarray(values if order is None else values[order]).view(np.uint8)

        self._add(name, shape, TYPES["F32"], produce)

    def _add(self, name: str, shape: tuple[int, ...], kind: GgmlType, produce: Callable[[], Iterator[Bytes]]) -> None:
        self.tensors.append(GgufTensor(name=name, shape=shape, type=kind, produce=produce))


def interleaved(rows: int, head_dim: int) -> NDArray[np.int64]:
    """Order of the rows of q or k whose rotary positions turn neighbours instead of halves."""
    heads = np.arange(rows).reshape(-1, 2, head_dim // 2)
    return heads.swapaxes(1, 2).reshape(-1)


def pieces(matrix: Matrix, kind: GgmlType, where: str) -> Iterator[Bytes]:
    """The bytes of a matrix, some rows at a time, so that memory holds little more than the matrix."""
    rows, cols = (matrix.q if isinstance(matrix, Integers) else matrix).shape
    step = max(1, _PIECE // cols)
    for start in range(0, rows, step):
        try:
            yield write(_in_order(matrix, np.arange(start, min(rows, start + step))), kind)
        except FormatError as error:
            raise FormatError(f"{where}: {error}") from None


def _in_order(matrix: Matrix, order: NDArray[np.int64]) -> Matrix:
    return matrix.rows(order) if isinstance(matrix, Integers) else matrix[order]


def _describe(decoder: Decoder, vocabulary: Vocabulary, writer: Any) -> None:
    """The file's metadata."""
    text, mote, lineage = decoder.text, decoder.mote, decoder.checkpoint.lineage
    writer.add_type("model")
    writer.add_name(decoder.checkpoint.root.resolve().name)
    if lineage is not None:
        writer.add_string("mote.checkpoint", lineage.id)
    writer.add_quantization_version(2)
    writer.add_vocab_size(decoder.vocab)
    writer.add_context_length(int(text.max_position_embeddings))
    writer.add_embedding_length(decoder.hidden)
    writer.add_block_count(len(decoder.prefixes))
    writer.add_feed_forward_length(decoder.ffn)
    writer.add_head_count(decoder.heads)
    writer.add_head_count_kv(decoder.kv_heads)
    writer.add_key_length(decoder.head_dim)
    writer.add_value_length(decoder.head_dim)
    writer.add_layer_norm_rms_eps(float(text.rms_norm_eps))
    writer.add_rope_dimension_count(decoder.head_dim)
    writer.add_rope_freq_base(float(text.rope_parameters["rope_theta"]))
    if text.rope_parameters.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(gguf_library().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(text.rope_parameters["factor"]))
    writer.add_expert_count(mote.num_experts)
    writer.add_expert_used_count(mote.top_k)
    writer.add_expert_feed_forward_length(decoder.ffn)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_norm(mote.normalize_gates)
    writer.add_expert_weights_scale(1.0)
    writer.add_leading_dense_block_count(0)
    vocabulary.describe(writer)
