"""Up-cycling a model in memory, in place: the same initial values as the streaming path, to the bit."""

from typing import Any

import torch
from torch import Tensor, nn

from mote.errors import FormatError, UnsupportedModelError
from mote.model.block import MoteBlock, install
from mote.model.families import PROJECTIONS, Anatomy, anatomy, placement
from mote.model.quantizer import finish
from mote.upcycle.config import UpcycleConfig
from mote.upcycle.donor import Donor
from mote.upcycle.initialise import expert_weights, gain, router_weight
from mote.upcycle.warning import warn_if_small


def upcycle_model(model: nn.Module, config: UpcycleConfig) -> nn.Module:
    """Turns a dense transformers model into a mixture, in place, and returns it.

    Dense weights become the shared experts; routed experts start as `config.initialise` says, fp32. Only routers and
    routed experts (and shared experts, with train_shared) keep requires_grad. Raises UnsupportedModelError for a model
    without SwiGLU layers or with blocks already, FormatError for NaN or infinite weights.
    """
    parts = anatomy(model)
    if any(isinstance(ffn, MoteBlock) for ffn in parts.ffns):
        raise UnsupportedModelError(f"{type(model).__name__} is up-cycled already; start from the dense model")
    layers = placement(config.placement, len(parts.ffns), config.layers)
    donors = _donors(config, parts, layers)
    warn_if_small(sum(p.numel() for p in parts.decoder.parameters()), config.routed)
    contract = config.contract(layers, parts.hidden_size, parts.ffn_size)
    install(model, contract)
    for layer in layers:
        _fill(parts.ffns[layer], config, layer, donors[layer])
    finish(model, contract)
    return model


def _donors(config: UpcycleConfig, parts: Anatomy, layers: tuple[int, ...]) -> dict[int, dict[str, Tensor]]:
    """The matrices that each layer's routed experts start from; references, and mapped files, not copies."""
    if config.initialise_from:
        donor = Donor.open(config.initialise_from)
        donor.require(parts.hidden_size, parts.ffn_size, layers)
        return {layer: {name: donor.read(layer, name) for name in PROJECTIONS} for layer in layers}
    own = {layer: {n: getattr(parts.ffns[layer], n).weight.detach() for n in PROJECTIONS} for layer in layers}
    for layer, matrices in own.items():
        for name, matrix in matrices.items():
            if not bool(torch.isfinite(matrix).all()):
                raise FormatError(
                    f"layer {layer} {name} holds NaN or Inf; repair or retrain the dense model before up-cycling it"
                )
    return own


@torch.no_grad()
def _fill(block: Any, config: UpcycleConfig, layer: int, donor: dict[str, Tensor]) -> None:
    block.router.weight.copy_(router_weight(config, layer, block.hidden_size))
    for name in PROJECTIONS:
        getattr(block.experts, name).copy_(expert_weights(config, layer, name, donor[name]))
    if block.experts.gain is not None:
        block.experts.gain.copy_(gain(config))
