"""Packed modules in the place of a model's own: attention projections, dense layers' networks, head and table, the
vision tower's matrices.

On a skeleton, before a packed checkpoint's tensors are loaded, and in a model in memory that is being packed. The
mixtures' own matrices are the business of `block`.
"""

from typing import Any

from torch import nn

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.layout import ATTENTION, tower_matrices
from mote.errors import UnsupportedModelError
from mote.model.families import PROJECTIONS, anatomy
from mote.model.packed import PackedLinear, PackedMatrix
from mote.model.table import PackedEmbedding, TiedHead
from mote.ternary.format import WeightFormat, integer_codec


def install_linears(model: nn.Module, contract: MoteConfig) -> None:
    """Puts empty packed modules where `contract` says that matrices outside of the mixtures are packed, in place.

    Raises UnsupportedModelError for a model that has something else there.
    """
    parts = anatomy(model)
    if integer_codec(contract.tower):
        if parts.vision_tower is None:
            raise UnsupportedModelError(f"{type(model).__name__} has no vision tower, and one is packed")
        install_tower(parts.vision_tower, contract.tower)
    layers: Any = parts.decoder.layers
    for index, (layer, ffn) in enumerate(zip(layers, parts.ffns, strict=True)):
        if integer_codec(contract.attention):
            for name in ATTENTION:
                linear = getattr(getattr(layer, "self_attn", None), name, None)
                setattr(layer.self_attn, name, empty_linear(linear, contract.attention, f"layer {index}: {name}"))
        if integer_codec(contract.shared) and index not in contract.layers:
            for name in PROJECTIONS:
                setattr(ffn, name, empty_linear(getattr(ffn, name), contract.shared, f"layer {index}: {name}"))
    if not integer_codec(contract.head):
        return
    head = parts.lm_head
    if is_tied(model):
        replace_table(model, empty_table(embedding_of(model), contract.head))
    else:
        replace_module(model, head, empty_linear(head, contract.head, "the head"))


def install_tower(tower: nn.Module, fmt: WeightFormat) -> None:
    """Puts empty packed modules in the place of the matrices in a vision tower's layers."""
    names = (f"vision_tower.{name}" for name, _ in tower.named_parameters())
    for name in tower_matrices(names):
        module = name.removeprefix("vision_tower.")
        owner, _, last = module.rpartition(".")
        parent: Any = tower.get_submodule(owner)
        setattr(parent, last, empty_linear(getattr(parent, last), fmt, module))
        # Or transformers, after loading, would make up weights of matrices that are gone (SigLIP's `_init_weights`).
        parent._is_hf_initialized = True


def empty_linear(linear: Any, fmt: WeightFormat, where: str, codec: str | None = None) -> PackedLinear:
    """A packed module of the shape of `linear`, with its bias; codec: of a ternary format. Raises
    UnsupportedModelError unless it is an `nn.Linear`."""
    if not isinstance(linear, nn.Linear):
        raise UnsupportedModelError(f"{where} is {type(linear).__name__}, not nn.Linear; it cannot be packed")
    rows, cols = linear.weight.shape
    with linear.weight.device:
        return PackedLinear(
            PackedMatrix(rows=rows, cols=cols, format=fmt, codec=codec or integer_codec(fmt) or ""), linear.bias
        )


def empty_table(embedding: Any, fmt: WeightFormat) -> PackedEmbedding:
    """A packed table of the shape of `embedding`. Raises UnsupportedModelError for an embedding that does more than
    look up (Gemma's multiplies)."""
    if type(embedding) is not nn.Embedding:
        raise UnsupportedModelError(f"the embedding is {type(embedding).__name__}, not nn.Embedding; leave the head")
    rows, cols = embedding.weight.shape
    with embedding.weight.device:
        layout = PackedMatrix(rows=rows, cols=cols, format=fmt, codec=integer_codec(fmt) or "")
        return PackedEmbedding(layout, embedding.weight.dtype)


def embedding_of(model: Any) -> nn.Module:
    """The embedding of a transformers model."""
    found: nn.Module = model.get_input_embeddings()
    return found


def is_tied(model: Any) -> bool:
    """Whether the head of a transformers model is its embedding: by its own list, which a skeleton has as well."""
    return any(name.endswith("lm_head.weight") for name in getattr(model, "all_tied_weights_keys", None) or {})


def replace_table(model: nn.Module, table: PackedEmbedding) -> None:
    """Puts `table` in the place of the embedding and of the head tied to it, and takes the pair off transformers' list
    of weights to tie."""
    head: Any = anatomy(model).lm_head
    replace_module(model, embedding_of(model), table)
    replace_module(model, head, TiedHead(table, head.bias))
    for module in model.modules():
        for name in ("_tied_weights_keys", "all_tied_weights_keys"):
            tied = getattr(module, name, None)
            if isinstance(tied, dict):
                kept = {target: source for target, source in tied.items() if not target.endswith("lm_head.weight")}
                setattr(module, name, kept)


def replace_module(model: nn.Module, old: nn.Module | None, new: nn.Module) -> None:
    """Puts `new` where `old` is in `model`. Raises UnsupportedModelError when it is nowhere."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
                return
    raise UnsupportedModelError(f"{type(model).__name__} has no head to pack; looked for lm_head")


def norms_before_routers(model: nn.Module) -> None:
    """Moves every decoder layer's network to the end of the layer's list of parts.

    transformers takes a model's dtype, which it saves and casts inputs to, from the first floating parameter. In a
    model packed throughout that would be a router, which is fp32 whatever the rest is.
    """
    layers: Any = anatomy(model).decoder.layers
    for layer in layers:
        layer._modules["mlp"] = layer._modules.pop("mlp")
