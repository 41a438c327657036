"""Quantised weights of one parameter, computed once per change of the parameter: once per optimiser step.

Quantising, not the product, is what quantisation-aware training costs over full precision, so it is not
repeated per forward, recomputation and micro-batch.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from mote.ternary.format import WeightFormat
from mote.ternary.quantize import QuantizedWeight, dequantize_weight, quantize_weight

_optimizer_steps = 0


def _count_optimizer_step(*_: object) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_optimizer_step)


class QuantizedCache:
    """Holds (q int8, scale fp32) of one parameter until its storage, version, dtype or format changes.

    A change is seen through the tensor's version counter and through the end of any optimiser's step: fused
    optimisers write without advancing the counter (torch 2.13). A write through `.data` is not seen, so
    whoever writes that way calls `clear`. Copies and pickles of a cache are empty.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the quantised weights; the next `get` computes them again."""
        self._owner: weakref.ref[Tensor] | None = None
        self._key: tuple[object, ...] = ()
        self._quantized: QuantizedWeight | None = None
        self._dense: Tensor | None = None

    def get(self, w: Tensor, fmt: WeightFormat) -> QuantizedWeight:
        """`quantize_weight(w, fmt)`, kept until w changes; raises FormatError likewise."""
        key = (w.data_ptr(), w._version, _optimizer_steps, w.dtype, w.device, fmt)
        if self._quantized is None or self._key != key or self._owner is None or self._owner() is not w:
            self.clear()
            self._quantized = quantize_weight(w, fmt)
            self._owner, self._key = weakref.ref(w), key
        return self._quantized

    def get_dense(self, w: Tensor, fmt: WeightFormat, dtype: torch.dtype) -> Tensor:
        """The dequantised weights in dtype, [..., N, K], kept beside the integers."""
        quantized = self.get(w, fmt)
        if self._dense is None or self._dense.dtype != dtype:
            self._dense = dequantize_weight(*quantized, fmt, dtype)
        return self._dense

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.clear()
