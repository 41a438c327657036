"""`mote.from_config`: a model with blocks and random weights, where an Auto class would build the dense one."""

import copy
from typing import Any

import torch
from torch import nn

from mote.checkpoint.contract import MoteConfig
from mote.errors import CheckpointError
from mote.model.block import blocks, initialise_router, install
from mote.model.families import PROJECTIONS
from mote.model.guard import unguard
from mote.model.quantizer import finish

EXPERT_STD = 0.02
"""Standard deviation of random experts."""


def from_config(config: Any, *, seed: int = 0) -> nn.Module:
    """Builds the model that a MoTE `config` describes, with random weights (packed experts are all zero).

    config: a transformers config with a `quantization_config`, as `AutoConfig.from_pretrained` gives for a MoTE
        checkpoint. seed: of routers and experts; the dense part draws from torch's global generator, as transformers
        does. Raises CheckpointError for a config without MoTE settings.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        raise CheckpointError("from_config: the config has no quantization_config; use an Auto class for a dense model")
    contract = MoteConfig.from_dict(settings if isinstance(settings, dict) else settings.to_dict())
    dense = copy.deepcopy(config)
    unguard(dense)
    del dense.quantization_config
    model: nn.Module = _model_class(dense)._from_config(dense)
    install(model, contract)
    generator = torch.Generator().manual_seed(seed)
    for block in blocks(model):
        initialise_router(block.router, generator)
        if contract.state == "upcycled":
            _randomise(block.experts, generator)
    finish(model, contract)
    return model


def _model_class(config: Any) -> Any:
    import transformers

    for name in getattr(config, "architectures", None) or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for auto in (transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise CheckpointError(f"from_config: no model class for {type(config).__name__}; looked for a causal or vision one")


@torch.no_grad()
def _randomise(experts: Any, generator: torch.Generator) -> None:
    for name in PROJECTIONS:
        weight = getattr(experts, name)
        weight.copy_(torch.randn(weight.shape, generator=generator) * EXPERT_STD)
    if experts.gain is not None:
        experts.gain.zero_()
