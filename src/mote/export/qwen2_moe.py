"""`mote export hf --as qwen2_moe`: the text model as a stock Qwen2-MoE checkpoint, matrices multiplied out to floats.

Qwen2-MoE's shared expert passes a gate that MoTE does not have. A gate whose weights are all tiny makes it one half:

    sigmoid(w . h) * FFN_shared(h),   w = 1e-6 (1, ..., 1)   ->   (1/2 + 2.5e-7 sum(h)) * FFN_shared(h)

and a down projection of twice the size makes that one again; doubling changes no digit of a float. In transformers
w = 0 would be exact, but engines that compute the gate as silu(x) / x (llama.cpp) divide zero by zero there. The routed
experts' gates are the softmax's, renormalised or not as in MoTE. Layers without a mixture are Qwen2-MoE's
`mlp_only_layers`. Activations are not quantised there: logits are those of MoTE with activation "none".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.writer import CARRIED, DEFAULT_SHARD_BYTES, write_checkpoint
from mote.errors import UnsupportedModelError
from mote.export.config import HfConfig
from mote.export.decoder import SWIGLU, Decoder, open_decoder
from mote.export.matrices import Integers, Matrix

SHARED_GATE = 1e-6
_NAMES = {"float32": "F32", "bfloat16": "BF16"}
TEXT_FILES = tuple(name for name in CARRIED if "processor" not in name and "image" not in name)
"""What is carried along: a processor would want a vision tower."""


def export_qwen2_moe(
    checkpoint: Path,
    out: Path,
    config: HfConfig,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Checkpoint:
    """Writes the language model of the packed or up-cycled `checkpoint` as a Qwen2-MoE checkpoint `out`, atomically.

    Raises CheckpointError (damaged, dense, disk full, `out` in use without force) or UnsupportedModelError (no
    equivalent); the source stays as it is.
    """
    decoder = open_decoder(str(checkpoint))
    if reason := why_not(decoder):
        raise UnsupportedModelError(f"{checkpoint}: {reason}")
    provenance = Provenance.start("export", config=config, seed=None, parent=decoder.checkpoint)
    plan = _Plan(decoder, _NAMES[config.dtype])
    return write_checkpoint(
        out,
        config=stock_config(decoder, config),
        tensors=plan.planned,
        produce=lambda name: plan.makers[name](),
        lineage=provenance,
        carry_from=checkpoint,
        carried=TEXT_FILES,
        max_shard_bytes=max_shard_bytes,
        force=force,
        progress=progress,
    )


def why_not(decoder: Decoder) -> str:
    """What Qwen2-MoE lacks, or ""."""
    biased = [name for name in decoder.checkpoint.tensors if name.startswith(decoder.stack) and name.endswith(".bias")]
    if biased and len(biased) != 3 * len(decoder.prefixes):
        return "some of q, k and v have biases and others have not, which qwen2_moe cannot say"
    return ""


def stock_config(decoder: Decoder, config: HfConfig) -> dict[str, Any]:
    """config.json of the stock model."""
    text, mote = decoder.text, decoder.mote
    rope = {key: value for key, value in text.rope_parameters.items() if value is not None}
    return {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "vocab_size": decoder.vocab,
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.ffn,
        "moe_intermediate_size": decoder.ffn,
        "shared_expert_intermediate_size": decoder.ffn,
        "num_hidden_layers": len(decoder.prefixes),
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": int(text.max_position_embeddings),
        "rms_norm_eps": float(text.rms_norm_eps),
        "rope_parameters": rope,
        "rope_theta": float(rope["rope_theta"]),  # where engines that follow older configs look
        "use_sliding_window": False,
        "qkv_bias": f"{decoder.prefixes[0]}self_attn.q_proj.bias" in decoder.checkpoint.tensors,
        "num_experts": mote.num_experts,
        "num_experts_per_tok": mote.top_k,
        "norm_topk_prob": mote.normalize_gates,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in range(len(decoder.prefixes)) if not decoder.mixed(i)],
        "router_aux_loss_coef": float(mote.balance_coefficient),
        "tie_word_embeddings": not decoder.head,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "pad_token_id": text.pad_token_id,
        "dtype": config.dtype,
    }


@dataclass
class _Plan:
    """All tensors of the stock checkpoint, and what makes each."""

    decoder: Decoder
    dtype: str
    planned: list[PlannedTensor] = field(default_factory=list)
    makers: dict[str, Callable[[], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        decoder = self.decoder
        self._matrix("model.embed_tokens.weight", decoder.embedding, decoder.vocab, decoder.hidden)
        if decoder.head:
            self._matrix("lm_head.weight", decoder.head, decoder.vocab, decoder.hidden)
        self._floats("model.norm.weight", f"{decoder.stack}norm.weight")
        for layer, prefix in enumerate(decoder.prefixes):
            stock = f"model.layers.{layer}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                self._floats(f"{stock}{norm}.weight", f"{prefix}{norm}.weight")
            for short, module, stored in decoder.attention(prefix):
                name = f"{stock}self_attn.{short}_proj"
                self._matrix(f"{name}.weight", module, stored.rows, stored.cols)
                if f"{module}.bias" in decoder.checkpoint.tensors:
                    self._floats(f"{name}.bias", f"{module}.bias")
            mixed = decoder.mixed(layer)
            for short in SWIGLU:
                shared = f"{stock}mlp.{'shared_expert.' if mixed else ''}{short}_proj.weight"
                factor = 2.0 if mixed and short == "down" else 1.0
                self._matrix(shared, f"{prefix}mlp.{short}_proj", *decoder.size(short), factor)
            if mixed:
                self._mixture(f"{stock}mlp.", f"{prefix}mlp.")

    def _mixture(self, stock: str, prefix: str) -> None:
        decoder = self.decoder
        self._floats(f"{stock}gate.weight", f"{prefix}router.weight")
        gate = torch.full((1, decoder.hidden), SHARED_GATE)
        self._add(f"{stock}shared_expert_gate.weight", (1, decoder.hidden), lambda: gate)
        for short in SWIGLU:
            rows, cols = decoder.size(short)
            stack = f"{prefix}experts.{short}_proj"
            stored = decoder.matrices.stored_expert(stack, rows, cols)
            for expert in range(decoder.mote.num_experts):

                def make(expert: int = expert, stack: str = stack, stored: Any = stored) -> Tensor:
                    return _floats(decoder.matrices.read_expert(stack, expert, stored))

                self._add(f"{stock}experts.{expert}.{short}_proj.weight", (rows, cols), make)

    def _matrix(self, name: str, module: str, rows: int, cols: int, factor: float = 1.0) -> None:
        stored = self.decoder.matrices.stored(module, rows, cols)
        self._add(name, (rows, cols), lambda: _floats(self.decoder.matrices.read(module, stored)) * factor)

    def _floats(self, name: str, source: str) -> None:
        shape = self.decoder.checkpoint.info(source).shape
        self._add(name, shape, lambda: torch.from_numpy(self.decoder.matrices.floats(source)))

    def _add(self, name: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> None:
        dtype = torch.float32 if self.dtype == "F32" else torch.bfloat16
        self.planned.append(PlannedTensor(name, self.dtype, shape))
        self.makers[name] = lambda: make().to(dtype)


def _floats(matrix: Matrix) -> Tensor:
    return torch.from_numpy(matrix.floats() if isinstance(matrix, Integers) else matrix)
