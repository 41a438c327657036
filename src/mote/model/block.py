"""One block for MoTE and MoE-LLaVA: a shared expert, routed experts, and how their outputs combine.

    S = FFN_shared(h)      R = sum_k gate_k FFN_routed[e_k](h)      p = sum_k gate_k
    add     y = S + R                (the paper; without a shared expert y = R)
    convex  y = (1 - p) S + R
    gated   y = S + R with every expert's output times its gain, which starts at 0

The dense network keeps its place: an existing `LlamaMLP` or `Qwen2MLP` changes class and gains `.router` and
`.experts`, and its gate_proj, up_proj, down_proj stay where they were as the shared expert. So dense tensor names stay
valid and nothing of the model around it is copied. S comes from the network's own arithmetic, in its own dtype; R and
the sum are fp32, rounded once to the dtype of h.

Shapes: B rows, S columns, T = B*S tokens, H hidden.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.layout import codec_of
from mote.errors import UnsupportedModelError
from mote.model.experts import FloatExperts, PackedExperts
from mote.model.families import PROJECTIONS, anatomy
from mote.model.linears import empty_linear, install_linears
from mote.model.router import ROUTER_STD, Router
from mote.model.routing import RoutingContext
from mote.ternary.format import WeightFormat, integer_codec
from mote.ternary.linear import QuantizedCache, grouped_linear

KEEP_FLOAT32 = ("mlp.router.weight", "mlp.experts.")
"""Parts of tensor names that load as fp32 in a model of another dtype; scales of linears load as their buffers are."""


class QuantizedLinear(nn.Linear):
    """An `nn.Linear` whose weight is quantised on the fly (a shared expert's matrix); returns fp32."""

    mote_format: WeightFormat
    mote_cache: QuantizedCache
    mote_stack: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] of any float dtype to fp32 [..., N]."""
        flat = x.float().reshape(-1, self.in_features)
        y = grouped_linear(flat, [0, flat.shape[0]], self._stack(), self.mote_cache, self.mote_format)
        return y.view(*x.shape[:-1], -1)

    def _stack(self) -> Tensor:
        """The weight as a stack of one [1, N, K]; the same tensor every time while frozen, so that its cache holds."""
        if self.weight.requires_grad:
            return self.weight[None]
        if self.mote_stack is None or self.mote_stack.data_ptr() != self.weight.data_ptr():
            self.mote_stack = self.weight.detach()[None]
        return self.mote_stack


class MoteBlock(nn.Module):
    """Forward of a feed-forward network turned mixture; `install` grafts it onto the existing module."""

    router: Router
    experts: FloatExperts | PackedExperts
    mote: MoteConfig
    layer_index: int
    routing: RoutingContext
    hidden_size: int
    act_fn: Callable[[Tensor], Tensor]
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, h: Tensor) -> Tensor:
        """Normed hidden states [B, S, H] or [T, H] to the block's output, in h's dtype."""
        h_TH = h.reshape(-1, self.hidden_size)
        route = self.router(h_TH)
        if self.training or self.routing.recording:
            rows = h.shape[0] if h.ndim == 3 else 1
            self.routing.record(self.layer_index, route, (rows, h_TH.shape[0] // rows))
        y_TH = self.experts(h_TH, route)
        if self.mote.shared_expert:
            shared_TH = self.shared(h).reshape(h_TH.shape).float()  # h's own shape: the dense bits
            if self.mote.combine == "convex":
                shared_TH = (1 - route.gate_Tk.sum(-1, keepdim=True)) * shared_TH
            y_TH = shared_TH + y_TH
        return y_TH.to(h.dtype).view(h.shape)

    def shared(self, h: Tensor) -> Tensor:
        """The always-on expert, exactly the dense network's arithmetic: [..., H] to [..., H]."""
        y: Tensor = self.down_proj(self.act_fn(self.gate_proj(h)) * self.up_proj(h))
        return y


_SWAPPED: dict[type[nn.Module], type[nn.Module]] = {}


def install(model: nn.Module, config: MoteConfig) -> RoutingContext:
    """Turns the networks of `config.layers` into blocks with uninitialised routers and experts, in place.

    Dense weights stay as the shared expert (or are dropped without one); other matrices that `config` says are packed
    give way to empty packed modules. Freezes all but what stage III trains, and registers the hooks that feed the
    routing context. Raises UnsupportedModelError for a model without SwiGLU layers, with fewer layers than
    `config.layers` names, with blocks already, or with something else where a packed matrix should be.
    """
    parts = anatomy(model)
    if any(isinstance(ffn, MoteBlock) for ffn in parts.ffns):
        raise UnsupportedModelError(f"{type(model).__name__} has MoTE blocks already; start from the dense model")
    if config.layers and config.layers[-1] >= len(parts.ffns):
        raise UnsupportedModelError(
            f"quantization_config names layer {config.layers[-1]}; {type(model).__name__} has {len(parts.ffns)} layers"
        )
    context = RoutingContext(config.balance_coefficient, parts.image_token_id)
    for layer in config.layers:
        _graft(parts.ffns[layer], config, layer, context, parts.hidden_size, parts.ffn_size)
    if config.layers:
        model.register_forward_pre_hook(context.enter_model, with_kwargs=True)
        model.register_forward_hook(context.leave_model, with_kwargs=True)
        parts.decoder.register_forward_pre_hook(context.enter_decoder, with_kwargs=True)
        parts.decoder.register_forward_hook(context.leave_decoder)
    install_linears(model, config)
    keep = getattr(model, "_keep_in_fp32_modules_strict", None)
    names = KEEP_FLOAT32[:1] if integer_codec(config.routed) else KEEP_FLOAT32  # bf16 scales load as they are
    model._keep_in_fp32_modules_strict = set(keep or ()) | set(names)  # type: ignore[assignment]
    freeze(model)
    return context


def blocks(model: nn.Module) -> list[MoteBlock]:
    """The model's blocks in layer order (empty for a dense model)."""
    return [module for module in model.modules() if isinstance(module, MoteBlock)]


def context_of(model: nn.Module) -> RoutingContext:
    """The routing context of a model or of any part that holds a block."""
    for module in model.modules():
        if isinstance(module, MoteBlock):
            return module.routing
    raise UnsupportedModelError(f"{type(model).__name__} has no MoTE block; up-cycle it first")


def freeze(model: nn.Module) -> None:
    """Leaves gradients to what stage III trains: routers, routed experts and, with `train_shared`, shared experts.

    Loading creates parameters anew, so this runs again after it. A packed model is frozen whole: adapters train on it.
    """
    found = blocks(model)
    if not found:
        return
    model.requires_grad_(False)
    if found[0].mote.state == "packed":
        return
    for block in found:
        block.requires_grad_(block.mote.train_shared)
        block.router.requires_grad_(True)
        block.experts.requires_grad_(True)


@torch.no_grad()
def initialise_router(router: Router, generator: torch.Generator) -> None:
    """Normal of standard deviation 0.02, in place."""
    drawn = torch.randn(router.weight.shape, generator=generator, dtype=torch.float32)
    router.weight.copy_(drawn * ROUTER_STD)


def _graft(
    ffn: nn.Module, config: MoteConfig, layer: int, context: RoutingContext, hidden_size: int, ffn_size: int
) -> None:
    base = type(ffn)
    if base not in _SWAPPED:
        _SWAPPED[base] = type(f"Mote{base.__name__}", (MoteBlock, base), {"__module__": __name__})
    device = next(ffn.parameters()).device
    experts = PackedExperts if codec_of(config, config.routed) else FloatExperts
    with torch.device(device):
        router = Router(hidden_size, config.num_experts, config.top_k, normalize_gates=config.normalize_gates)
        ffn.add_module("router", router)
        ffn.add_module("experts", experts(config, hidden_size, ffn_size))
        for name in PROJECTIONS:
            _prepare_shared(ffn, name, config)
    ffn.__class__ = _SWAPPED[base]
    ffn.mote = config  # type: ignore[assignment]
    ffn.layer_index = layer  # type: ignore[assignment]
    ffn.routing = context  # type: ignore[assignment]
    ffn.hidden_size = hidden_size  # type: ignore[assignment]


def _prepare_shared(ffn: nn.Module, name: str, config: MoteConfig) -> None:
    """Drops, keeps, quantises or replaces one matrix of the shared expert, as the settings say."""
    matrix = getattr(ffn, name)
    if not config.shared_expert:
        delattr(ffn, name)
    elif config.shared.quantizer != "none":
        if codec := codec_of(config, config.shared):
            setattr(ffn, name, empty_linear(matrix, config.shared, name, codec))
        else:
            matrix.__class__ = QuantizedLinear
            matrix.mote_format = config.shared
            matrix.mote_cache = QuantizedCache()
            matrix.mote_stack = None
