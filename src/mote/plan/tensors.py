"""Names and shapes of a dense model's tensors from its config.json, as tables of symbols: no torch, no weights.

A family is a row: its tensors' names on disk and their shapes in sizes of the config. Whatever a config leaves out, or
a family that is not here, gives None, and transformers is asked (`outline`); tests hold both ways to each other.
Shapes of packed matrices are not in this file: they are `mote.checkpoint.layout`'s.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]
Sizes = Mapping[str, int]
Rows = Mapping[str, tuple[str | int, ...]]

_NORMS: Rows = {"input_layernorm.weight": ("H",), "post_attention_layernorm.weight": ("H",)}
_FFN: Rows = {
    "mlp.gate_proj.weight": ("F", "H"),
    "mlp.up_proj.weight": ("F", "H"),
    "mlp.down_proj.weight": ("H", "F"),
}
_ATTENTION: Rows = {
    "self_attn.q_proj.weight": ("Q", "H"),
    "self_attn.k_proj.weight": ("K", "H"),
    "self_attn.v_proj.weight": ("K", "H"),
    "self_attn.o_proj.weight": ("H", "Q"),
}
_QKV_BIAS: dict[str, tuple[str | int, ...]] = {
    "self_attn.q_proj.bias": ("Q",),
    "self_attn.k_proj.bias": ("K",),
    "self_attn.v_proj.bias": ("K",),
}
_O_BIAS: dict[str, tuple[str | int, ...]] = {"self_attn.o_proj.bias": ("H",)}
_HEAD_NORMS: Rows = {"self_attn.q_norm.weight": ("D",), "self_attn.k_norm.weight": ("D",)}

Text = Callable[[Mapping[str, Any]], Rows]
TEXT: dict[str, Text] = {
    "llama": lambda config: {**_ATTENTION, **(_QKV_BIAS | _O_BIAS if config.get("attention_bias") else {})},
    "mistral": lambda config: _ATTENTION,
    "qwen2": lambda config: {**_ATTENTION, **_QKV_BIAS},
    "qwen3": lambda config: {
        **_ATTENTION,
        **_HEAD_NORMS,
        **(_QKV_BIAS | _O_BIAS if config.get("attention_bias") else {}),
    },
}
"""`model_type` of a decoder -> rows of its attention; norms and feed-forward networks are everyone's."""

TEXT_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "vocab_size"),
)
VISION_KEYS = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")


def text_shapes(config: Mapping[str, Any], prefix: str, *, tied: bool) -> Shapes | None:
    """Tensors of a decoder whose names start with `prefix` ("" or "language_model."), or None."""
    family = TEXT.get(config.get("model_type", ""))
    if family is None or config.get("mlp_bias") or any(not _is_size(config.get(key)) for key in TEXT_KEYS):
        return None
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    sizes = {"H": hidden, "F": config["intermediate_size"], "D": width, "V": config["vocab_size"]}
    sizes |= {"Q": heads * width, "K": config["num_key_value_heads"] * width}
    found = _named(f"{prefix}model.", {"embed_tokens.weight": ("V", "H")}, sizes)
    layer = {**family(config), **_FFN, **_NORMS}
    for index in range(config["num_hidden_layers"]):
        found |= _named(f"{prefix}model.layers.{index}.", layer, sizes)
    found |= _named(f"{prefix}model.", {"norm.weight": ("H",)}, sizes)
    return found if tied else found | _named(prefix, {"lm_head.weight": ("V", "H")}, sizes)


def _affine(name: str, *shape: str | int) -> dict[str, tuple[str | int, ...]]:
    """A weight and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


_ENCODER: Rows = {
    **_affine("layer_norm1", "H"),
    **{k: v for name in "kvq" for k, v in _affine(f"self_attn.{name}_proj", "H", "H").items()},
    **_affine("self_attn.out_proj", "H", "H"),
    **_affine("layer_norm2", "H"),
    **_affine("mlp.fc1", "F", "H"),
    **_affine("mlp.fc2", "H", "F"),
}
_SIGLIP: Rows = {
    **_affine("embeddings.patch_embedding", "H", "C", "P", "P"),
    "embeddings.position_embedding.weight": ("N", "H"),
    **_affine("post_layernorm", "H"),
}
_SIGLIP_POOL: Rows = {
    "head.probe": (1, 1, "H"),
    "head.attention.in_proj_weight": ("3H", "H"),
    "head.attention.in_proj_bias": ("3H",),
    **_affine("head.attention.out_proj", "H", "H"),
    **_affine("head.layernorm", "H"),
    **_affine("head.mlp.fc1", "F", "H"),
    **_affine("head.mlp.fc2", "H", "F"),
}
_CLIP: Rows = {
    "embeddings.class_embedding": ("H",),
    "embeddings.patch_embedding.weight": ("H", "C", "P", "P"),
    "embeddings.position_embedding.weight": ("N+1", "H"),
    **_affine("pre_layrnorm", "H"),
    **_affine("post_layernorm", "H"),
}
_DINO: Rows = {
    "embeddings.cls_token": (1, 1, "H"),
    "embeddings.mask_token": (1, "H"),
    "embeddings.position_embeddings": (1, "N+1", "H"),
    **_affine("embeddings.patch_embeddings.projection", "H", "C", "P", "P"),
    **_affine("layernorm", "H"),
}
_DINO_LAYER: Rows = {
    **_affine("norm1", "H"),
    **{k: v for n in ("query", "key", "value") for k, v in _affine(f"attention.attention.{n}", "H", "H").items()},
    **_affine("attention.output.dense", "H", "H"),
    "layer_scale1.lambda1": ("H",),
    **_affine("norm2", "H"),
    **_affine("mlp.fc1", "F", "H"),
    **_affine("mlp.fc2", "H", "F"),
    "layer_scale2.lambda1": ("H",),
}


def vision_shapes(config: Mapping[str, Any], prefix: str = "vision_tower.") -> Shapes | None:
    """Tensors of a vision tower, or None."""
    kind = config.get("model_type")
    if any(not _is_size(config.get(key)) for key in VISION_KEYS):
        return None
    hidden, patch, layers = config["hidden_size"], config["patch_size"], config["num_hidden_layers"]
    patches = (config["image_size"] // patch) ** 2
    sizes = {"H": hidden, "3H": 3 * hidden, "P": patch, "C": config.get("num_channels", 3)}
    sizes |= {"N": patches, "N+1": patches + 1}
    if kind == "dinov2" and not config.get("use_swiglu_ffn") and config.get("use_mask_token", True):
        sizes["F"] = int(hidden * config.get("mlp_ratio", 4))
        return _named(prefix, _DINO, sizes) | _layers(f"{prefix}encoder.layer.", _DINO_LAYER, layers, sizes)
    if kind not in ("siglip_vision_model", "clip_vision_model") or not _is_size(config.get("intermediate_size")):
        return None
    sizes["F"] = config["intermediate_size"]
    siglip = kind == "siglip_vision_model"
    rows = {**_SIGLIP, **(_SIGLIP_POOL if config.get("vision_use_head", True) else {})} if siglip else _CLIP
    return _named(prefix, rows, sizes) | _layers(f"{prefix}encoder.layers.", _ENCODER, layers, sizes)


def connector_shapes(config: Mapping[str, Any], tower: int, hidden: int) -> Shapes | None:
    """Tensors between a tower and a decoder of these widths, or None."""
    layer = config.get("vision_feature_layer", -2)
    inputs = tower * (len(layer) if isinstance(layer, list) else 1)
    prefix = "multi_modal_projector."
    if config.get("model_type") == "llava" and config.get("multimodal_projector_bias", True):
        rows = {**_affine("linear_1", "H", "I"), **_affine("linear_2", "H", "H")}
        return _named(prefix, rows, {"H": hidden, "I": inputs})
    if config.get("model_type") == "aya_vision":
        width = config.get("alignment_intermediate_size") or hidden
        sizes = {"H": hidden, "I": tower * config.get("downsample_factor", 2) ** 2, "A": width, "A/2": width // 2}
        rows = {**_affine("layernorm", "I"), **_affine("linear_1", "A", "I"), **_affine("linear_2", "H", "A/2")}
        return _named(prefix, rows, sizes)
    return None


def shapes(config: Mapping[str, Any]) -> Shapes | None:
    """Every tensor of the dense model that a config.json describes, by name on disk; None where no table says."""
    text, vision = config.get("text_config"), config.get("vision_config")
    if text is None and vision is None:
        return text_shapes(config, "", tied=bool(config.get("tie_word_embeddings", False)))
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        return None
    # A family that joins the two may have a default of its own, which its config then leaves out.
    if "tie_word_embeddings" not in config:
        return None
    language = text_shapes(text, "language_model.", tied=bool(config["tie_word_embeddings"]))
    tower = vision_shapes(vision)
    if language is None or tower is None:
        return None
    connector = connector_shapes(config, vision["hidden_size"], text["hidden_size"])
    return None if connector is None else {**tower, **connector, **language}


def _layers(prefix: str, rows: Rows, count: int, sizes: Sizes) -> Shapes:
    return dict(item for index in range(count) for item in _named(f"{prefix}{index}.", rows, sizes).items())


def _named(prefix: str, rows: Rows, sizes: Sizes) -> Shapes:
    return {f"{prefix}{name}": tuple(_sizes(shape, sizes)) for name, shape in rows.items()}


def _sizes(shape: tuple[str | int, ...], sizes: Sizes) -> Iterator[int]:
    for size in shape:
        yield size if isinstance(size, int) else sizes[size]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
