"""Which parameters a stage trains, and the dtypes they have on the way.

While it trains, a parameter is an fp32 master: at a rate of 2e-5 a bf16 weight does not move. On disk it has the dtype
that it came with, but for routers and routed experts, which stay fp32, since their rounding decides ternary values.
"""

from collections.abc import Mapping

import torch
from torch import nn

from mote.checkpoint.accounting import component_of
from mote.errors import TrainingError
from mote.model.block import MoteBlock
from mote.train.config import STAGES


def select(model: nn.Module, components: frozenset[str]) -> None:
    """Let exactly the parameters of `components` train, as fp32 masters; all others are frozen as they are.

    Shared experts join where the checkpoint's `train_shared` says so. Raises TrainingError if nothing would train.
    """
    mixtures = {name: module for name, module in model.named_modules() if isinstance(module, MoteBlock)}
    prefixes = frozenset(f"{name}." for name in mixtures)
    if any(block.mote.train_shared for block in mixtures.values()):
        components = components | {"shared_experts"}
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if component_of(name, prefixes) in components:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise TrainingError(f"nothing to train: the model has none of {', '.join(sorted(components))}")


def dtypes_of(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of every parameter by name."""
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def settle(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Every parameter to the dtype in which it is stored: that of `dtypes`, but fp32 for routers and experts."""
    for name, parameter in model.named_parameters():
        kept = component_of(name) in STAGES["experts"].trains
        parameter.data = parameter.data.to(torch.float32 if kept else dtypes[name])
