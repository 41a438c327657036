"""The decoders that the engine runs itself, as a table: another Llama-like family is another row.

A family says how its tensors are called and where its config keeps what the arithmetic needs; whether a projection has
a bias, and whether the head is tied, is read from the checkpoint. What makes a model something else than pre-norm,
rotary positions, grouped-query attention and SwiGLU (sliding windows, partial rotation, other activations) is refused
by `why_not`, and the model then runs in transformers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mote.checkpoint.layout import VISION

ROPE_FIXED = ("default", "linear", "yarn", "llama3")
"""Rotary scalings whose frequencies do not depend on the length of the text."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Names of one decoder family; those of a layer are relative to "<stack>layers.<i>.".

    q_norm, k_norm: norms over each head of queries and keys, or "" for a family without. eps: key of the config.
    """

    input_norm: str = "input_layernorm.weight"
    post_norm: str = "post_attention_layernorm.weight"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    q_norm: str = ""
    k_norm: str = ""
    ffn: str = "mlp"
    final_norm: str = "norm.weight"
    embedding: str = "embed_tokens"
    eps: str = "rms_norm_eps"


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(q_norm="self_attn.q_norm.weight", k_norm="self_attn.k_norm.weight"),
}
"""By `model_type` of the language model's config."""

STACKS = ("model.language_model.", "language_model.model.", "model.")
"""Prefixes under which files keep a decoder, most specific first."""


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """How a vision-language family sees. connector: module and class of transformers; prefixes are those of files."""

    connector: tuple[str, str]
    tower_prefixes: tuple[str, ...] = ("model.vision_tower.", "vision_tower.")
    connector_prefixes: tuple[str, ...] = ("model.multi_modal_projector.", "multi_modal_projector.")


EYES: dict[str, Eyes] = {
    "llava": Eyes(connector=("transformers.models.llava.modeling_llava", "LlavaMultiModalProjector")),
    "aya_vision": Eyes(
        connector=("transformers.models.aya_vision.modeling_aya_vision", "AyaVisionMultiModalProjector")
    ),
}
"""By `model_type` of the whole model; a model without one of them has no pictures."""


def why_not(config: Any, names: Iterable[str]) -> str:
    """Why the engine does not run a model, in a few words, or "" when it does.

    config: the transformers config. names: of the checkpoint's tensors.
    """
    text = config.get_text_config()
    if text is not config and config.model_type not in EYES:
        return f"model type {config.model_type!r} is not in the engine's table ({', '.join(EYES)})"
    if text.model_type not in FAMILIES:
        return f"language model {text.model_type!r} is not in the engine's table ({', '.join(FAMILIES)})"
    if text.hidden_act not in ("silu", "swish"):
        return f"activation {text.hidden_act!r}"
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if kinds - {"full_attention"} or (not kinds and window is not None):
        return "attention in sliding windows"
    rope = text.rope_parameters
    if rope.get("rope_type", "default") not in ROPE_FIXED or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"rotary positions of type {rope.get('rope_type')!r}"
    for name in names:
        if ".layers." in name and ".mlp." in name and name.endswith("_proj.bias") and not VISION.search(name):
            return f"a feed-forward network with biases ({name})"
    return ""


def rope(text: Any) -> tuple[Any, float]:
    """Rotary frequencies fp32 [head_dim / 2] as a torch tensor, and what cosines and sines are multiplied by."""
    import torch

    kind = text.rope_parameters.get("rope_type", "default")
    if kind != "default":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](text, torch.device("cpu"))
        return frequencies.float().contiguous(), float(factor)
    size = head_dim(text)
    powers = torch.arange(0, size, 2, dtype=torch.float) / size
    return 1.0 / (text.rope_parameters["rope_theta"] ** powers), 1.0


def head_dim(text: Any) -> int:
    """Width of one attention head."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
