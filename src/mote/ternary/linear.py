"""One quantised linear: the specification of its numbers, and its straight-through gradients in training.

    acc = x_q . q^T                          exact integers
    y   = float(acc) * (s * scale)             one scale per matrix or row; s * scale is rounded to fp32 first
    y   = (sum_g float(acc_g) * scale_g) * s   one scale per group of inputs, added in ascending order in fp32
    y   = sum_g float(acc_g) * (scale_g * s_g)  activations with scales of their own per group (int8_group)
        + sum_g (float(sum x_q,g) * s_g) * (scale_g * (2^(B-1) - zero_g))    with zero points: code = q + 2^(B-1)

Backward is straight through both quantisers, as if y = x W^T with the dequantised operands:

    dx = (dy * scale) q          dW = (dy * s)^T x_q

Shape suffixes: T tokens, N outputs, K inputs, G groups along K, E experts.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mote.ternary.activations import quantize_activation, quantize_activation_grouped
from mote.ternary.cache import QuantizedCache
from mote.ternary.format import WeightFormat
from mote.ternary.integer_matmul import integer_matmul
from mote.ternary.quantize import dequantize_weight

__all__ = [
    "QuantizedCache",
    "activation_linear",
    "grouped_linear",
    "quantized_linear",
    "straight_through",
    "weight_only_linear",
]


def quantized_linear(
    x_q_TK: Tensor, s_T: Tensor, q_NK: Tensor, scale: Tensor, fmt: WeightFormat, zero_NG: Tensor | None = None
) -> Tensor:
    """INT8 activations [T, K] with scales fp32 [T] through int8 weights [N, K]: fp32 [T, N].

    scale: fp32 [] (tensor), [N] (row) or [N, G] (group). s_T is [T, G] where the format's activation is "int8_group".
    zero_NG: fp32, of a format that is not symmetric, with "int8_group" activations.
    Every kernel must reproduce these bits.
    """
    grouped = fmt.activation == "int8_group"
    if fmt.granularity != "group":
        acc_TN = integer_matmul(x_q_TK, q_NK, fmt.max_level)
        return acc_TN.to(torch.float32).mul_(_output_scale(s_T, scale, fmt))
    y_TN = torch.zeros(x_q_TK.shape[0], q_NK.shape[0], dtype=torch.float32, device=x_q_TK.device)
    for g, start in enumerate(range(0, q_NK.shape[1], fmt.group)):
        columns = slice(start, start + fmt.group)
        acc_TN = integer_matmul(x_q_TK[:, columns], q_NK[:, columns], fmt.max_level)
        factor = scale[:, g] * s_T[:, g, None] if grouped else scale[:, g]
        y_TN += acc_TN.to(torch.float32).mul_(factor)  # product rounded first, then added: no fused operation
    if zero_NG is not None:
        shift_NG = scale * ((1 << (fmt.bits - 1)) - zero_NG)
        for g, x_TM in enumerate(torch.split(x_q_TK, fmt.group, dim=1)):
            y_TN += (x_TM.sum(1).to(torch.float32) * s_T[:, g])[:, None] * shift_NG[:, g]
    return y_TN if grouped else y_TN.mul_(s_T[:, None])


def weight_only_linear(x_TK: Tensor, q_NK: Tensor, scale: Tensor, fmt: WeightFormat) -> Tensor:
    """Unquantised activations [T, K], computed in fp32, through int8 weights [N, K]: fp32 [T, N].

    The order of the sum over K is the library's, so the last bits may differ between machines.
    """
    with torch.autocast(x_TK.device.type, enabled=False):
        x_TK = x_TK.to(torch.float32)
        if fmt.granularity == "group":
            return x_TK @ dequantize_weight(q_NK, scale, fmt).t()
        return (x_TK @ q_NK.to(torch.float32).t()).mul_(scale)


def activation_linear(x_TK: Tensor, q_NK: Tensor, scale: Tensor, fmt: WeightFormat) -> Tensor:
    """Float activations [T, K], quantised if and as the format says, through int8 weights [N, K]: fp32 [T, N]."""
    if fmt.activation == "none":
        return weight_only_linear(x_TK, q_NK, scale, fmt)
    grouped = fmt.activation == "int8_group"
    x_q_TK, s_T = quantize_activation_grouped(x_TK, fmt.group) if grouped else quantize_activation(x_TK)
    return quantized_linear(x_q_TK, s_T, q_NK, scale, fmt)


def straight_through(x: Tensor, q: Tensor) -> Tensor:
    """Exactly q forwards, the gradient of x backwards.

    `x + (q - x).detach()` is not exactly q in bf16, nor in fp32 where q - x rounds.
    """
    out: Tensor = _StraightThrough.apply(x, q)  # type: ignore[no-untyped-call]
    return out


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, q: Tensor) -> Tensor:
        return q.view_as(q)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def grouped_linear(
    x_TK: Tensor, offsets: Sequence[int], w_ENK: Tensor, cache: QuantizedCache, fmt: WeightFormat
) -> Tensor:
    """Tokens sorted by expert, each through its expert's matrix: fp32 [T, N].

    x_TK: [T, K], any floating dtype; rows offsets[e]:offsets[e + 1] belong to expert e (E + 1 ascending
    offsets, from 0 to T; empty experts allowed). w_ENK: master weights [E, N, K]; its gradient is one dense
    [E, N, K] buffer. cache: kept beside the parameter by its owner.

    Without gradients, and forwards in training with one scale per matrix or row, the numbers are those of
    `quantized_linear` to the bit. In training the rest runs in the compute dtype (autocast's, where it is
    on): the backward products, and forwards with scales per group, unquantised activations or unquantised
    weights.
    """
    offsets = tuple(offsets)
    if (
        len(offsets) != len(w_ENK) + 1
        or (offsets[0], offsets[-1]) != (0, len(x_TK))
        or list(offsets) != sorted(offsets)
    ):
        raise ValueError(f"offsets {offsets} do not cut {len(x_TK)} tokens into {len(w_ENK)} experts")
    dtype = _compute_dtype(x_TK, w_ENK)
    with torch.autocast(x_TK.device.type, enabled=False):
        if torch.is_grad_enabled() and (x_TK.requires_grad or w_ENK.requires_grad):
            args = (x_TK, w_ENK, offsets, cache, fmt, dtype)
            y_TN: Tensor = _GroupedLinear.apply(*args)  # type: ignore[no-untyped-call]
            return y_TN
        return _forward(x_TK, w_ENK, offsets, cache, fmt, dtype, exact=True)[0]


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TK: Tensor,
        w_ENK: Tensor,
        offsets: tuple[int, ...],
        cache: QuantizedCache,
        fmt: WeightFormat,
        dtype: torch.dtype,
    ) -> Tensor:
        exact = fmt.granularity != "group" and fmt.activation == "int8"  # int8_group has granularity group
        y_TN, operand_TK, s_T = _forward(x_TK, w_ENK, offsets, cache, fmt, dtype, exact=exact)
        weights = _backward_weights(w_ENK, cache, fmt, dtype)
        ctx.save_for_backward(operand_TK, s_T, *weights)
        ctx.offsets, ctx.dtype, ctx.x_dtype = offsets, dtype, x_TK.dtype
        ctx.w_dtype = w_ENK.dtype
        return y_TN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        operand_TK, s_T, w_ENK, scale = ctx.saved_tensors
        with torch.autocast(operand_TK.device.type, enabled=False):
            dy_TN = grads[0].to(torch.float32)
            dx_TK = torch.empty_like(operand_TK, dtype=ctx.x_dtype) if ctx.needs_input_grad[0] else None
            dw_ENK = torch.empty_like(w_ENK, dtype=ctx.w_dtype) if ctx.needs_input_grad[1] else None
            for e, rows in enumerate(_segments(ctx.offsets)):
                if dx_TK is not None:
                    scaled_TN = dy_TN[rows] if scale is None else dy_TN[rows] * scale[e]
                    dx_TK[rows] = scaled_TN.to(ctx.dtype) @ w_ENK[e].to(ctx.dtype)
                if dw_ENK is not None and rows.start == rows.stop:
                    dw_ENK[e].zero_()
                elif dw_ENK is not None:
                    scaled_TN = dy_TN[rows] if s_T is None else dy_TN[rows] * s_T[rows, None]
                    dw_ENK[e] = scaled_TN.to(ctx.dtype).t() @ operand_TK[rows].to(ctx.dtype)
        return dx_TK, dw_ENK, None, None, None, None


def _forward(
    x_TK: Tensor,
    w_ENK: Tensor,
    offsets: Sequence[int],
    cache: QuantizedCache,
    fmt: WeightFormat,
    dtype: torch.dtype,
    *,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(y fp32 [T, N], the activation operand [T, K], its scale fp32 [T] or None).

    exact: the numbers of `quantized_linear` or `weight_only_linear` rather than products in dtype.
    """
    if fmt.activation == "int8_group":
        return _forward_grouped_activations(x_TK, w_ENK, offsets, cache, fmt, dtype, exact=exact)
    operand_TK, s_T = quantize_activation(x_TK) if fmt.activation == "int8" else (x_TK.detach(), None)
    y_TN = torch.empty(x_TK.shape[0], w_ENK.shape[1], dtype=torch.float32, device=x_TK.device)
    if fmt.quantizer == "none" or not exact:
        dense_ENK = w_ENK.detach() if fmt.quantizer == "none" else cache.get_dense(w_ENK, fmt, dtype)
        cast_TK = operand_TK.to(dtype)
        for e, rows in enumerate(_segments(offsets)):
            y_TN[rows] = cast_TK[rows] @ dense_ENK[e].to(dtype).t()
        return (y_TN if s_T is None else y_TN.mul_(s_T[:, None])), operand_TK, s_T
    q_ENK, scale = cache.get(w_ENK, fmt)
    for e, rows in enumerate(_segments(offsets)):
        if s_T is None:
            y_TN[rows] = weight_only_linear(operand_TK[rows], q_ENK[e], scale[e], fmt)
        else:
            y_TN[rows] = quantized_linear(operand_TK[rows], s_T[rows], q_ENK[e], scale[e], fmt)
    return y_TN, operand_TK, s_T


def _forward_grouped_activations(
    x_TK: Tensor,
    w_ENK: Tensor,
    offsets: Sequence[int],
    cache: QuantizedCache,
    fmt: WeightFormat,
    dtype: torch.dtype,
    *,
    exact: bool,
) -> tuple[Tensor, Tensor, None]:
    """`_forward` where x has a scale per group: the operand is x dequantised, so that none is left to apply."""
    x_q, s_TG = quantize_activation_grouped(x_TK, fmt.group)
    operand_TK = x_q * s_TG.repeat_interleave(fmt.group, dim=-1)[..., : x_q.shape[-1]]
    y_TN = torch.empty(x_TK.shape[0], w_ENK.shape[1], dtype=torch.float32, device=x_TK.device)
    if fmt.quantizer == "none" or not exact:
        dense_ENK = w_ENK.detach() if fmt.quantizer == "none" else cache.get_dense(w_ENK, fmt, dtype)
        for e, rows in enumerate(_segments(offsets)):
            y_TN[rows] = operand_TK[rows].to(dtype) @ dense_ENK[e].to(dtype).t()
        return y_TN, operand_TK, None
    q_ENK, scale = cache.get(w_ENK, fmt)
    for e, rows in enumerate(_segments(offsets)):
        y_TN[rows] = quantized_linear(x_q[rows], s_TG[rows], q_ENK[e], scale[e], fmt)
    return y_TN, operand_TK, None


def _backward_weights(
    w_ENK: Tensor, cache: QuantizedCache, fmt: WeightFormat, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """(matrices, scale) whose product is the weight that dx multiplies; scale [E] or [E, N], or None."""
    if fmt.quantizer == "none":
        return w_ENK.detach(), None
    if fmt.granularity == "group":
        return cache.get_dense(w_ENK, fmt, dtype), None
    return cache.get(w_ENK, fmt)


def _segments(offsets: Sequence[int]) -> list[slice]:
    """The rows of each expert in turn, empty ones included."""
    return [slice(start, stop) for start, stop in pairwise(offsets)]


def _output_scale(s_T: Tensor, scale: Tensor, fmt: WeightFormat) -> Tensor:
    return s_T[:, None] * (scale if fmt.granularity == "tensor" else scale[None, :])


def _compute_dtype(x_TK: Tensor, w_ENK: Tensor) -> torch.dtype:
    """Dtype of the products that are not exact integers: autocast's, else the wider of the operands'."""
    device = x_TK.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(x_TK.dtype, w_ENK.dtype)
