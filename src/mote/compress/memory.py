"""Packing a model in memory, in place."""

from typing import Any

import torch
from torch import nn

from mote.checkpoint.layout import scale_shape
from mote.compress.config import PackConfig
from mote.errors import FormatError, UnsupportedModelError
from mote.model.block import blocks
from mote.model.experts import PackedExperts
from mote.model.families import PROJECTIONS
from mote.model.packed import PackedLinear, PackedMatrix, packable
from mote.model.quantizer import finish


@torch.no_grad()
def pack_model(model: nn.Module, config: PackConfig) -> nn.Module:
    """Replaces the master weights of an up-cycled model by packed ones, in place, and returns it.

    Logits stay what they were with gradients off: to the bit for scales per tensor and row. Raises
    UnsupportedModelError for a model without blocks, CheckpointError for a packed one, FormatError for NaN, Inf or an
    unpackable grid; then the model is as it was.
    """
    found: list[Any] = blocks(model) if isinstance(model, nn.Module) else []
    if not found:
        raise UnsupportedModelError(f"{type(model).__name__} has no MoTE block; up-cycle it first")
    contract = config.contract(found[0].mote, type(model).__name__)
    shared = contract.shared_expert and packable(contract.shared)
    replacements: list[tuple[Any, dict[str, nn.Module]]] = []
    for block in found:
        try:
            new: dict[str, nn.Module] = {"experts": PackedExperts.pack(block.experts, contract)}
            if shared:
                new |= {name: _pack_linear(getattr(block, name), contract.shared, config) for name in PROJECTIONS}
        except FormatError as error:
            raise FormatError(f"layer {block.layer_index}: {error}") from None
        replacements.append((block, new))
    for block, new in replacements:
        for name, module in new.items():
            setattr(block, name, module)
        block.mote = contract
    finish(model, contract)
    return model


def _pack_linear(linear: Any, fmt: Any, config: PackConfig) -> PackedLinear:
    rows, cols = linear.weight.shape
    with torch.device(linear.weight.device):
        packed = PackedLinear(
            PackedMatrix(rows=rows, cols=cols, format=fmt, codec=config.codec), scale_shape(fmt, rows, cols)
        )
    packed.fill(linear.weight)
    return packed
