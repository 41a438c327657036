"""Where a Hugging Face model keeps its parts, found by structure.

No model class is named here: a model is supported when its decoder layers hold a SwiGLU feed-forward network of three
bias-free matrices, W_down( silu(W_gate h) * (W_up h) ), at one of the places in `DECODERS`. A new family is a new row
in one of the tables; a model that fits none gets an error that lists every place that was tried. Checkpoints on disk
are searched by the same rule, by tensor name, since transformers renames keys between memory and disk.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mote.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""The three matrices of one SwiGLU network: gate and up are [F, H], down is [H, F]."""

DECODERS = ("model.language_model", "language_model.model", "language_model", "model", "")
"""Attribute paths that may hold the stack of decoder layers (`.layers`), most specific first."""
VISION_TOWERS = ("model.vision_tower", "vision_tower", "model.vision_model", "vision_model")
CONNECTORS = ("model.multi_modal_projector", "multi_modal_projector", "model.connector", "connector")
HEADS = ("lm_head", "language_model.lm_head")
IMAGE_TOKENS = ("image_token_id", "image_token_index")
ACTIVATIONS = ("silu", "swish")

_DISK_FFN = re.compile(
    r"(?P<stack>(?:model\.language_model|language_model\.model|language_model|model)\.layers)"
    r"\.(?P<layer>\d+)\.mlp\.(?P<projection>gate_proj|up_proj|down_proj)\.weight"
)


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parts of one model; absent parts (a text-only model's eyes) are None.

    decoder: the module that runs the layers; ffns: the SwiGLU network of every layer, in order. hidden_size H and
    ffn_size F are counts of features; text_config is the language model's own config.
    """

    decoder: "nn.Module"
    ffns: tuple["nn.Module", ...]
    vision_tower: "nn.Module | None"
    connector: "nn.Module | None"
    lm_head: "nn.Module | None"
    image_token_id: int | None
    hidden_size: int
    ffn_size: int
    text_config: Any

    @property
    def language_model(self) -> "nn.Module":
        """Another name of `decoder`."""
        return self.decoder


def anatomy(model: "nn.Module") -> Anatomy:
    """Finds the parts of `model` (a transformers model, dense or already with MoTE blocks).

    Raises UnsupportedModelError, listing what was looked for, when the layers are nowhere or their networks are of
    another kind.
    """
    decoder = _find_decoder(model)
    ffns = tuple(layer.mlp for layer in decoder.layers)  # type: ignore[union-attr]
    text_config = _text_config(model)
    activation = getattr(text_config, "hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{type(model).__name__}: activation {activation!r} in the feed-forward network; looked for "
            "SwiGLU with "
            f"{' or '.join(ACTIVATIONS)}"
        )
    config = getattr(model, "config", None)
    image_token = next((getattr(config, n) for n in IMAGE_TOKENS if getattr(config, n, None) is not None), None)
    tower, connector = eyes(model)
    return Anatomy(
        decoder=decoder,
        ffns=ffns,
        vision_tower=tower,
        connector=connector,
        lm_head=_first(model, HEADS),
        image_token_id=image_token,
        hidden_size=int(text_config.hidden_size),
        ffn_size=int(text_config.intermediate_size),
        text_config=text_config,
    )


def eyes(model: "nn.Module") -> "tuple[nn.Module | None, nn.Module | None]":
    """(vision tower, connector) of a model, or of a part of one that has no decoder; None for what is absent."""
    return _first(model, VISION_TOWERS), _first(model, CONNECTORS)


@dataclass(frozen=True, kw_only=True)
class DiskAnatomy:
    """The feed-forward networks of a checkpoint, by tensor name on disk.

    stack: name of the layer stack, such as "model.layers"; shapes are those of layer 0.
    """

    stack: str
    num_layers: int
    hidden_size: int
    ffn_size: int

    def ffn(self, layer: int) -> str:
        """Name of layer `layer`'s network, without a trailing dot."""
        return f"{self.stack}.{layer}.mlp"

    def weight(self, layer: int, projection: str) -> str:
        """Name of one dense matrix."""
        return f"{self.ffn(layer)}.{projection}.weight"


def disk_anatomy(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> DiskAnatomy:
    """Finds the feed-forward networks of a dense checkpoint from its tensors' names and shapes.

    config is config.json; `where` names the checkpoint in errors. Raises UnsupportedModelError when a layer lacks one
    of the three matrices, shapes disagree, or the activation is not SwiGLU's.
    """
    text = config.get("text_config") or config
    activation = text.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise UnsupportedModelError(f"{where}: activation {activation!r}; looked for {' or '.join(ACTIVATIONS)}")
    found: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        if match := _DISK_FFN.fullmatch(name):
            layers = found.setdefault(match["stack"], {})
            layers.setdefault(int(match["layer"]), {})[match["projection"]] = tuple(shape)
    if len(found) != 1:
        raise UnsupportedModelError(
            f"{where}: found {len(found)} stacks of SwiGLU layers ({', '.join(found) or 'none'}); looked for "
            "one set of "
            f"tensors named {_DISK_FFN.pattern}"
        )
    stack, layers = next(iter(found.items()))
    ffn, hidden = layers[min(layers)].get("gate_proj", (0, 0))
    expected = {"gate_proj": (ffn, hidden), "up_proj": (ffn, hidden), "down_proj": (hidden, ffn)}
    odd = [i for i in range(len(layers)) if layers.get(i) != expected]
    if odd:
        raise UnsupportedModelError(
            f"{where}: {stack}.{odd[0]}.mlp holds {layers.get(odd[0])}; looked for {expected} in every layer"
        )
    if any(f"{stack}.{i}.mlp.{p}.bias" in shapes for i in layers for p in PROJECTIONS):
        raise UnsupportedModelError(f"{where}: feed-forward network with biases; looked for bias-free matrices")
    return DiskAnatomy(stack=stack, num_layers=len(layers), hidden_size=hidden, ffn_size=ffn)


def placement(rule: str, num_layers: int, explicit: Iterable[int] = ()) -> tuple[int, ...]:
    """Indices of the layers that get a mixture, ascending.

    rule: "dense" every layer, "sparse" every second from layer 0, "first_half", "second_half" (the four of MoE-LLaVA),
        or "explicit", which takes `explicit`. Raises UnsupportedModelError on an unknown rule or a layer that is not
        there.
    """
    rules = {
        "dense": range(num_layers),
        "sparse": range(0, num_layers, 2),
        "first_half": range(num_layers // 2),
        "second_half": range(num_layers // 2, num_layers),
        "explicit": explicit,
    }
    if rule not in rules:
        raise UnsupportedModelError(f"placement {rule!r} is unknown; use one of {', '.join(rules)}")
    layers = tuple(sorted(set(rules[rule])))
    if not layers or layers[0] < 0 or layers[-1] >= num_layers:
        raise UnsupportedModelError(
            f"placement {rule!r} gives layers {layers} of a model with {num_layers}; choose from 0 to {num_layers - 1}"
        )
    return layers


def _first(model: "nn.Module", paths: Iterable[str]) -> "nn.Module | None":
    for path in paths:
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    return None


def _find_decoder(model: "nn.Module") -> "nn.Module":
    tried = []
    for path in DECODERS:
        module = _first(model, [path])
        layers = getattr(module, "layers", None)
        if module is None or layers is None:
            tried.append(f"{path or 'the model'}.layers (absent)")
            continue
        problem = next((p for p in (_ffn_problem(layer) for layer in layers) if p), None)
        if problem is None:
            return module
        tried.append(f"{path or 'the model'}.layers ({problem})")
    raise UnsupportedModelError(
        f"{type(model).__name__}: no decoder layers with a SwiGLU network .mlp.{{gate,up,down}}_proj; looked "
        "at "
        f"{', '.join(tried)}"
    )


def _ffn_problem(layer: "nn.Module") -> str | None:
    ffn = getattr(layer, "mlp", None)
    if ffn is None:
        return f"{type(layer).__name__} has no .mlp"
    if hasattr(ffn, "router"):
        return None  # a MoTE block, perhaps without a shared expert
    for name in PROJECTIONS:
        matrix = getattr(ffn, name, None)
        if matrix is None:
            return f"{type(ffn).__name__} has no {name}"
        if getattr(matrix, "bias", None) is not None:
            return f"{type(ffn).__name__}.{name} has a bias"
    return None


def _text_config(model: "nn.Module") -> Any:
    config: Any = getattr(model, "config", None)
    if config is None:
        raise UnsupportedModelError(f"{type(model).__name__}: no .config; looked for a transformers model")
    return config.get_text_config() if hasattr(config, "get_text_config") else config
