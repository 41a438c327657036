"""The routed experts of one layer: N SwiGLU networks, each token through the k that its route names.

    R(h) = sum_k gate_k * W_down[e_k]( silu(W_gate[e_k] h) * (W_up[e_k] h) )

Dropless: tokens are sorted by expert (stable), each expert multiplies its own segment, and the results go back to the
tokens' order, added in order of rank: no capacity, no atomic addition, the same bits every time. Everything between the
matrices and the sum is fp32; the block rounds once at the end.

`FloatExperts` holds trainable fp32 master weights, quantised on the fly with straight-through gradients;
`PackedExperts` holds the packed integers and scales. With gradients off both compute the same numbers: the same
integers, scaled in fp32 in the same order. A learnable gain (combine "gated") multiplies the down scale there, as it
will be in the packed file.

Shapes: T tokens, H hidden, F ffn width, N experts, k chosen, R = T*k routed slots.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.layout import codec_of, matrix_shape
from mote.errors import FormatError
from mote.model.families import PROJECTIONS
from mote.model.packed import Backend, PackedMatrix, fill, keep_scales, packed_linear, register
from mote.model.precision import KeepFloat32
from mote.model.router import Route
from mote.ternary.format import integer_codec
from mote.ternary.integers import PackedTensors
from mote.ternary.linear import QuantizedCache, activation_linear, grouped_linear
from mote.ternary.quantize import QuantizedWeight

TRAINING_ROWS = 64
"""In training an expert's rows are filled up with zeros to a multiple of this. The number of tokens of an expert is
another one in every layer and step, and the CPU's matrix library compiles a kernel for every shape it has not met."""


class RoutedExperts(KeepFloat32, nn.Module):
    """Routing of tokens to experts and back; subclasses say how one sorted batch goes through the matrices."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, h_TH: Tensor, route: Route) -> Tensor:
        """h_TH of any float dtype to R(h), fp32 [T, H]."""
        tokens, k = route.expert_Tk.shape
        place_R, offsets = self._places(route.expert_Tk.reshape(-1))
        slots_RH = h_TH.float().repeat_interleave(k, dim=0) if k > 1 else h_TH.float()
        x_PH = slots_RH.new_zeros(offsets[-1], h_TH.shape[1]).index_copy(0, place_R, slots_RH)
        y_RH = self._through(x_PH, offsets).index_select(0, place_R)
        y_TkH = y_RH.view(tokens, k, h_TH.shape[1]) * route.gate_Tk[..., None]
        total_TH = y_TkH[:, 0]
        for rank in range(1, k):
            total_TH = total_TH + y_TkH[:, rank]
        return total_TH

    def _places(self, expert_R: Tensor) -> tuple[Tensor, list[int]]:
        """(row of every routed slot in the layout sorted by expert [R], where each expert's rows start and end)."""
        step = TRAINING_ROWS if torch.is_grad_enabled() else 1
        counts = torch.bincount(expert_R, minlength=self.num_experts).tolist()
        offsets, shifts, seen = [0], [], 0
        for count in counts:
            shifts.append(offsets[-1] - seen)
            seen += count
            offsets.append(offsets[-1] + -(-count // step) * step)
        order_R = torch.argsort(expert_R, stable=True)
        sorted_R = torch.arange(order_R.numel(), device=order_R.device)
        place_R = torch.empty_like(order_R)
        place_R[order_R] = sorted_R + torch.tensor(shifts, device=order_R.device)[expert_R[order_R]]
        return place_R, offsets

    def _through(self, x_RH: Tensor, offsets: list[int]) -> Tensor:
        """fp32 rows sorted by expert, expert e owning rows offsets[e] to offsets[e+1], to outputs fp32 [R, H]."""
        raise NotImplementedError


class FloatExperts(RoutedExperts):
    """Trainable experts: `gate_proj`, `up_proj` [N, F, H] and `down_proj` [N, H, F], fp32, one parameter each.

    gain: fp32 [N], starting at 0, with combine "gated"; None otherwise.
    watch: called with (name of a matrix, its rows fp32 [R, K] sorted by expert, offsets) before it multiplies, for
        calibration; None otherwise.
    """

    watch: Callable[[str, Tensor, list[int]], None] | None
    gate_proj: nn.Parameter
    up_proj: nn.Parameter
    down_proj: nn.Parameter

    def __init__(self, config: MoteConfig, hidden_size: int, ffn_size: int) -> None:
        super().__init__(config.num_experts)
        self.format = config.routed
        for name in PROJECTIONS:
            shape = (self.num_experts, *matrix_shape(name, hidden_size, ffn_size))
            setattr(self, name, nn.Parameter(torch.empty(shape, dtype=torch.float32)))
        gated = config.combine == "gated"
        self.gain = nn.Parameter(torch.zeros(self.num_experts, dtype=torch.float32)) if gated else None
        self.watch = None
        self.forget()

    def forget(self) -> None:
        """Lets go of integers that are kept between calls."""
        self._caches = {name: QuantizedCache() for name in PROJECTIONS}

    def _through(self, x_RH: Tensor, offsets: list[int]) -> Tensor:
        g_RF = self._project("gate_proj", x_RH, offsets)
        u_RF = self._project("up_proj", x_RH, offsets)
        a_RF = nn.functional.silu(g_RF) * u_RF
        if self.gain is None:
            return self._project("down_proj", a_RF, offsets)
        if torch.is_grad_enabled() or self.format.quantizer == "none":
            sizes = torch.tensor([b - a for a, b in pairwise(offsets)], device=x_RH.device)
            gain_R = self.gain.repeat_interleave(sizes, output_size=x_RH.shape[0])
            return self._project("down_proj", a_RF, offsets) * gain_R[:, None]
        return self._down_with_gain(a_RF, offsets)

    def _project(self, name: str, x_RK: Tensor, offsets: list[int]) -> Tensor:
        if self.watch is not None:
            self.watch(name, x_RK, offsets)
        return grouped_linear(x_RK, offsets, getattr(self, name), self._caches[name], self.format)

    def _down_with_gain(self, a_RF: Tensor, offsets: list[int]) -> Tensor:
        """The gain inside the scale, so that packing changes no bit (gradients off)."""
        q, scale = self.quantized("down_proj")

        def one(expert: int, a_SF: Tensor) -> Tensor:
            return activation_linear(a_SF, q[expert], scale[expert], self.format)

        return _by_segment(a_RF, offsets, q.shape[1], one)

    @torch.no_grad()
    def quantized(self, name: str) -> QuantizedWeight:
        """Integers and scales of one stack as a packed file holds them, the gain folded into the down scale."""
        q, scale = self._caches[name].get(getattr(self, name), self.format)
        if name == "down_proj" and self.gain is not None:
            scale = scale * self.gain.float().view(-1, *[1] * (scale.ndim - 1))
        return QuantizedWeight(q, scale)


class PackedExperts(RoutedExperts):
    """Packed experts: per matrix `<name>_packed` uint8 [N, S, KG, 256 or 768], `<name>_scale` [N, ...] and maybe
    `<name>_zero`, as `PackedMatrix` has them of one."""

    def __init__(self, config: MoteConfig, hidden_size: int, ffn_size: int) -> None:
        super().__init__(config.num_experts)
        codec = codec_of(config, config.routed)
        if codec is None:
            raise FormatError("packed experts need a codec; use 'base3' or '2bit'")
        self.backend: Backend = "native"
        self.layouts: dict[str, PackedMatrix] = {}
        for name in PROJECTIONS:
            rows, cols = matrix_shape(name, hidden_size, ffn_size)
            self.layouts[name] = PackedMatrix(rows=rows, cols=cols, format=config.routed, codec=codec)
            register(self, self.layouts[name].empty(self.num_experts), f"{name}_")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return keep_scales(self, super()._apply, fn, recurse)

    def _through(self, x_RH: Tensor, offsets: list[int]) -> Tensor:
        g_RF = self._project("gate_proj", x_RH, offsets)
        u_RF = self._project("up_proj", x_RH, offsets)
        # One call over all rows, as in `FloatExperts`: exp in a vector's lane and in its tail differ by a last bit.
        return self._project("down_proj", nn.functional.silu(g_RF) * u_RF, offsets)

    def _project(self, name: str, x_RK: Tensor, offsets: list[int]) -> Tensor:
        packed, scale, zero = (getattr(self, f"{name}_{part}") for part in PackedTensors._fields)
        layout = self.layouts[name]

        def one(expert: int, x_SK: Tensor) -> Tensor:
            weight = PackedTensors(packed[expert], scale[expert], None if zero is None else zero[expert])
            return packed_linear(x_SK, weight, layout, self.backend)

        return _by_segment(x_RK, offsets, layout.rows, one)

    @classmethod
    @torch.no_grad()
    def pack(cls, experts: FloatExperts, config: MoteConfig) -> "PackedExperts":
        """Packs float experts; `config` is the packed model's. Ternary ones stay on the grid of their training, others
        are rounded to nearest. Raises FormatError for NaN, Inf or an unpackable grid."""
        ffn_size, hidden_size = experts.gate_proj.shape[1:]
        with torch.device(experts.gate_proj.device):
            packed = cls(config, hidden_size, ffn_size)
        for name, layout in packed.layouts.items():
            if integer_codec(config.routed):
                gain = experts.gain if name == "down_proj" else None
                fill(packed, encode_stack(layout, getattr(experts, name), gain), f"{name}_")
            else:
                q, scale = experts.quantized(name)
                fill(packed, PackedTensors(layout.pack(q), scale), f"{name}_")
        return packed


def encode_stack(layout: PackedMatrix, weight_NRK: Tensor, gain_N: Tensor | None) -> PackedTensors:
    """`layout.encode` of a stack of matrices, one at a time. gain_N: folded into the scales of ternary ones, into the
    weights of others before they are rounded."""
    early = gain_N is not None and integer_codec(layout.format) is not None
    matrices = map(torch.mul, weight_NRK, gain_N) if early and gain_N is not None else weight_NRK
    packed, scale, zero = zip(*(layout.encode(matrix) for matrix in matrices), strict=True)
    stacked = torch.stack(scale)
    if gain_N is not None and not early:
        stacked = stacked * gain_N.float().view(-1, *[1] * (stacked.ndim - 1))
    return PackedTensors(torch.stack(packed), stacked, None if zero[0] is None else torch.stack(zero))


def _by_segment(x_RK: Tensor, offsets: list[int], width: int, one: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Concatenates `one(expert, its rows)` over the experts that have rows."""
    bounds = enumerate(pairwise(offsets))
    parts = [one(e, x_RK[start:stop]) for e, (start, stop) in bounds if stop > start]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else x_RK.new_zeros(0, width)
