"""Packing a model in memory, in place."""

from typing import Any

import torch
from torch import nn

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.layout import codec_of
from mote.compress.config import PackConfig
from mote.compress.targets import Targets, find_targets
from mote.errors import FormatError, UnsupportedModelError
from mote.model.block import blocks
from mote.model.experts import PackedExperts
from mote.model.families import anatomy
from mote.model.linears import embedding_of, empty_linear, empty_table, replace_module, replace_table
from mote.model.packed import PackedLinear
from mote.model.quantizer import finish
from mote.model.table import PackedEmbedding


@torch.no_grad()
def pack_model(model: nn.Module, config: PackConfig) -> nn.Module:
    """Replaces the master weights of an up-cycled model by packed ones, in place, and returns it; `config` may ask for
    more, of a dense model too.

    Logits stay what they were with gradients off, to the bit for ternary scales per tensor and row, as long as nothing
    but routed experts is packed. Raises UnsupportedModelError for a model without blocks when nothing else is asked
    for, CheckpointError for a packed one, FormatError for NaN, Inf or an unpackable grid; then the model is as it was.
    """
    found: list[Any] = blocks(model) if isinstance(model, nn.Module) else []
    name = type(model).__name__
    if not found and not config.quantizes:
        raise UnsupportedModelError(f"{name} has no MoTE block; up-cycle it first")
    parts = anatomy(model)
    source: MoteConfig | None = found[0].mote if found else _contract_of(model)
    contract = config.contract(source, name, every_layer=len(found) == len(parts.ffns))
    targets = _targets(model, contract)
    experts: list[PackedExperts] = []
    for block in found if codec_of(contract, contract.routed) else ():
        try:
            experts.append(PackedExperts.pack(block.experts, targets.contract))
        except FormatError as error:
            raise FormatError(f"layer {block.layer_index}: {error}") from None
    linears = _pack_linears(model, targets)
    for block, packed in zip(found, experts or [block.experts for block in found], strict=True):
        block.experts = packed
        block.mote = targets.contract
    for old, new in linears:
        if isinstance(new, PackedEmbedding):
            replace_table(model, new)
        else:
            replace_module(model, old, new)
    finish(model, targets.contract)
    return model


def _contract_of(model: Any) -> MoteConfig | None:
    """What a model without blocks says of itself: None, unless it is a dense one that has been packed."""
    settings = getattr(model.config, "quantization_config", None)
    return None if settings is None else MoteConfig.from_dict(settings.to_dict())


def _targets(model: Any, contract: MoteConfig) -> Targets:
    head = anatomy(model).lm_head
    tied = head is not None and head.weight is embedding_of(model).weight
    # A shared weight is listed once, under its first name, as in a checkpoint.
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    return find_targets(contract, shapes, type(model).__name__, tied=tied)


def _pack_linears(model: nn.Module, targets: Targets) -> list[tuple[nn.Module, PackedLinear | PackedEmbedding]]:
    """Every module to replace, with its packed successor."""
    replacements: list[tuple[nn.Module, PackedLinear | PackedEmbedding]] = []
    for name, fmt in targets.formats.items():
        old: Any = model.get_submodule(name)
        new: PackedLinear | PackedEmbedding
        if name.endswith("embed_tokens"):
            new = empty_table(old, fmt)
        else:
            new = empty_linear(old, fmt, name, codec_of(targets.contract, fmt))
        try:
            new.fill(old.weight)
        except FormatError as error:
            raise FormatError(f"{name}: {error}") from None
        replacements.append((old, new))
    return replacements
