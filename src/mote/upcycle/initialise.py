"""Initial values of routers and routed experts, the same for a model in memory and a checkpoint on disk.

Every random tensor has a generator of its own, seeded by (seed, layer, role): its values do not depend on the order in
which tensors are made, nor on which other layers hold a mixture.

Shapes: E experts, N rows, K columns, H hidden.
"""

import hashlib

import torch
from torch import Tensor

from mote.model.router import ROUTER_STD
from mote.upcycle.config import UpcycleConfig

RANDOM_STD = 0.02
"""Standard deviation of experts initialised "random", transformers' default for linear layers."""


def router_weight(config: UpcycleConfig, layer: int, hidden_size: int) -> Tensor:
    """fp32 [E, H], normal with standard deviation 0.02."""
    return _normal((config.num_experts, hidden_size), ROUTER_STD, config.seed, layer, "router")


def expert_weights(config: UpcycleConfig, layer: int, projection: str, ffn: Tensor) -> Tensor:
    """The stack [E, N, K] of one matrix of one layer, in ffn's dtype; ffn [N, K] is the matrix to start from."""
    shape = (config.num_experts, *ffn.shape)
    if config.initialise == "random":
        return _normal(shape, RANDOM_STD, config.seed, layer, projection).to(ffn.dtype)
    if config.initialise == "zero" and projection == "down_proj":
        return torch.zeros(shape, dtype=ffn.dtype)
    return ffn.detach().expand(shape).contiguous()


def gain(config: UpcycleConfig) -> Tensor:
    """fp32 [E] zeros: with combine "gated" the model of step 0 is the dense one exactly."""
    return torch.zeros(config.num_experts)


def _normal(shape: tuple[int, ...], std: float, seed: int, layer: int, role: str) -> Tensor:
    digest = hashlib.sha256(f"{seed}/{layer}/{role}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator, dtype=torch.float32) * std
