"""A whole feed-forward layer in one native call: router, routed experts, shared expert, and their sum.

    expert(h) = down( silu(gate h) * (up h) )
    p = softmax(router h)      e_k: the top_k largest logits, the lowest index among equals
    g_k = p[e_k], divided by their sum where the layer renormalises
    add      y = sum_k g_k expert_{e_k}(h) + shared(h)
    convex   y = sum_k g_k expert_{e_k}(h) + (1 - sum_k g_k) shared(h)

in fp32, the routed experts added by rank and the shared one last; every matrix multiplies as in `mote.kernels.linear`.
A token's bits depend on itself only: not on the other tokens, the ISA or the number of threads.

Legend: T tokens, H hidden, F width, E routed experts, k chosen per token, N rows, K cols, G scale groups.
"""

import ctypes
from ctypes import POINTER, cast
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mote.errors import NativeError
from mote.kernels.abi import COMBINES, Expert, Ffn
from mote.kernels.library import check, library
from mote.kernels.tensors import contiguous, matrix, output, rows_contiguous, thread_count
from mote.ternary.format import Granularity


class StoredMatrix(NamedTuple):
    """One matrix [rows, cols] of any native format: `mote.kernels.linear`'s first arguments, in order, and `zero`."""

    packed: Tensor
    scale: Tensor | None
    codec_name: str
    rows: int
    cols: int
    group: int = 0
    granularity: Granularity = "tensor"
    zero: Tensor | None = None


class SwiGlu(NamedTuple):
    """One expert: gate and up [F, H], down [H, F], each in a format of its own."""

    gate: StoredMatrix
    up: StoredMatrix
    down: StoredMatrix


class Mixed(NamedTuple):
    """y_TH fp32; the routes taken: expert_Tk int32 and gate_Tk fp32, with k = 0 in a layer without routed experts."""

    y_TH: Tensor
    expert_Tk: Tensor
    gate_Tk: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class FeedForward:
    """A layer: routed experts with their router fp32 [E, H], a shared expert, or both.

    It keeps its tensors alive and reads them where they lie; tensors that are replaced need another layer.
    """

    experts: tuple[SwiGlu, ...] = ()
    router: Tensor | None = None
    shared: SwiGlu | None = None
    top_k: int = 1
    renormalize: bool = False
    combine: Literal["add", "convex"] = "add"

    @property
    def hidden(self) -> int:
        """H. Raises NativeError for a layer without any expert."""
        if self.shared is None and not self.experts:
            raise NativeError("a feed-forward layer needs a shared expert, routed ones, or both")
        return (self.shared or self.experts[0]).gate.cols

    @cached_property
    def native(self) -> Ffn:
        """The layer as a `mote_ffn`, made once. Raises NativeError for types, devices or sizes that do not fit; how the
        experts' sizes fit together is checked by every call."""
        if self.combine not in COMBINES:
            raise NativeError(f"combine {self.combine!r} is unknown; use one of {', '.join(COMBINES)}")
        ffn = Ffn(combine=COMBINES[self.combine], renormalize=int(self.renormalize))
        held: list[Any] = []  # a structure inside another is a copy, which keeps nothing alive
        if self.shared is not None:
            shared = _expert(self.shared, held)
            ffn.shared = ctypes.pointer(shared)
            held.append(shared)
        if self.experts:
            experts = (Expert * len(self.experts))(*(_expert(expert, held) for expert in self.experts))
            router = self._router(len(self.experts))
            ffn.experts, ffn.router = cast(experts, POINTER(Expert)), router.data_ptr()
            ffn.num_experts, ffn.top_k = len(self.experts), self.top_k
            held += [experts, router]
        ffn.held = held
        return ffn

    def _router(self, num_experts: int) -> Tensor:
        """The router's weight, whose shape the library cannot see."""
        shape = None if self.router is None else tuple(self.router.shape)
        if self.router is None or shape != (num_experts, self.hidden):
            raise NativeError(f"the router is {shape}; {num_experts} experts take [{num_experts}, {self.hidden}]")
        if not 1 <= self.top_k <= num_experts:
            raise NativeError(f"top_k={self.top_k} of {num_experts} experts; use 1 to all")
        return contiguous(self.router.detach(), "router", torch.float32)

    def __getstate__(self) -> dict[str, Any]:
        # Addresses are of this process and of these tensors: a copy finds its own.
        return {name: value for name, value in vars(self).items() if name != "native"}


def ffn(layer: FeedForward, h: Tensor, *, threads: int | None = None, out: Tensor | None = None) -> Mixed:
    """h fp32 [T, H] through `layer`; see the equations above. out: fp32 [T, H] to write into, rows contiguous.

    threads=None means torch.get_num_threads(). Raises NativeError for tensors or sizes that do not fit, before memory
    is touched.
    """
    h_TH = rows_contiguous(h, "h", torch.float32, layer.hidden)
    native, tokens = layer.native, h_TH.shape[0]
    y_TH = output(out, tokens, layer.hidden, torch.float32)
    chosen = layer.top_k if layer.experts else 0
    expert_Tk = torch.empty((tokens, chosen), dtype=torch.int32)
    gate_Tk = torch.empty((tokens, chosen), dtype=torch.float32)
    check(
        library().mote_ffn_f32(
            *(ctypes.byref(native), h_TH.data_ptr(), tokens, h_TH.stride(0), y_TH.data_ptr(), y_TH.stride(0)),
            *(expert_Tk.data_ptr(), gate_Tk.data_ptr(), thread_count(threads)),
        )
    )
    return Mixed(y_TH, expert_Tk, gate_Tk)


def _expert(expert: SwiGlu, held: list[Any]) -> Expert:
    matrices = [
        matrix(w.packed, w.codec_name, w.rows, w.cols, w.group, scale=w.scale, granularity=w.granularity, zero=w.zero)
        for w in expert
    ]
    held += matrices
    return Expert(*matrices)
