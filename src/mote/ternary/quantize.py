"""Weights to integers and scales: the paper's ternary absmean, and the grids and rules it is compared with.

    gamma = max(mean|W|, 1e-5)        q = clip(round(W * (1 / gamma)), -1, 1)        W ~ gamma * q

One scale per matrix, per output row, or per group of inputs. All arithmetic is fp32 whatever the dtype of W,
rounding is half to even, and mean|W| is `scales.mean_abs`, so every machine gets the same integers.

Shape suffixes: N rows (outputs), K columns (inputs), G = ceil(K / group) groups, B blocks that share a scale,
each of M weights.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mote.errors import FormatError
from mote.ternary.format import WeightFormat
from mote.ternary.scales import SCALE_FLOOR, fixed_order_sum, fp32_quotient, mean_abs

LLOYD_MAX_STEPS = 12
"""Rounds of re-assign and re-fit; normal weights come within 1e-3 of the fixed point (1.224 sigma) in 7."""


class QuantizedWeight(NamedTuple):
    """q: int8 [..., N, K]. scale: fp32 [...] (tensor), [..., N] (row) or [..., N, G] (group)."""

    q: Tensor
    scale: Tensor


@torch.no_grad()
def quantize_weight(w: Tensor, fmt: WeightFormat) -> QuantizedWeight:
    """Quantise one matrix [N, K], or a stack [..., N, K] matrix by matrix.

    w: any floating dtype, upcast to fp32. Raises FormatError for a NaN or infinite weight, an empty matrix,
    quantizer "none", and "absmean" on an n-bit grid, which nobody has defined.
    Sources: absmean arXiv 2402.17764; TWN (Lloyd-Max) arXiv 1605.04711.
    """
    _check(w, fmt)
    w = w.detach()
    lead, (rows, cols) = w.shape[:-2], w.shape[-2:]
    q = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    if fmt.granularity == "tensor":
        scale = _quantize_blocks(w.reshape(*lead, rows * cols), q.view(*lead, rows * cols), fmt)
    elif fmt.granularity == "row":
        scale = _quantize_blocks(w, q, fmt)
    else:
        scales, full = [], cols // fmt.group * fmt.group
        if full:
            blocks = (full // fmt.group, fmt.group)
            scales.append(
                _quantize_blocks(
                    torch.unflatten(w[..., :full], -1, blocks),
                    torch.unflatten(q[..., :full], -1, blocks),
                    fmt,
                )
            )
        if full < cols:
            scales.append(_quantize_blocks(w[..., full:], q[..., full:], fmt).unsqueeze(-1))
        scale = torch.cat(scales, dim=-1)
    if not bool(torch.isfinite(scale).all()):
        raise FormatError(
            f"weight of shape {tuple(w.shape)} holds NaN, Inf or values whose sum overflows fp32; "
            "repair or retrain the checkpoint before quantising it"
        )
    return QuantizedWeight(q, scale)


def dequantize_weight(
    q: Tensor, scale: Tensor, fmt: WeightFormat, dtype: torch.dtype = torch.float32
) -> Tensor:
    """scale * q, computed in fp32 and rounded once to dtype: [..., N, K]."""
    w = q.to(torch.float32).mul_(expand_scale(scale, fmt, q.shape[-1]))
    return w.to(dtype)


def expand_scale(scale: Tensor, fmt: WeightFormat, cols: int) -> Tensor:
    """The scale in a shape that broadcasts against [..., N, K]."""
    if fmt.granularity == "tensor":
        return scale[..., None, None]
    if fmt.granularity == "row":
        return scale[..., None]
    return scale.repeat_interleave(fmt.group, dim=-1)[..., :cols]


def _check(w: Tensor, fmt: WeightFormat) -> None:
    if fmt.quantizer == "none":
        raise FormatError("quantizer 'none' has no integers; keep the weight as it is")
    if fmt.scale == "absmean" and fmt.quantizer not in ("ternary", "binary"):
        raise FormatError(f"scale 'absmean' is not defined for {fmt.quantizer}; use 'absmax' or 'lloyd_max'")
    if w.dim() < 2 or w.numel() == 0 or not w.is_floating_point():
        raise FormatError(
            f"a weight must be a non-empty floating-point [..., rows, columns]; got {w.dtype} {w.shape}"
        )


def _quantize_blocks(w_BM: Tensor, q_BM: Tensor, fmt: WeightFormat) -> Tensor:
    """Quantise blocks [..., M] that share a scale: writes q_BM and returns the scale fp32 [...]."""
    w_BM = w_BM.to(torch.float32)
    if fmt.scale == "absmax":
        scale_B = fp32_quotient(w_BM.abs().amax(-1).clamp_min_(SCALE_FLOOR), fmt.max_level)
    elif fmt.max_level == 1:
        scale_B = mean_abs(w_BM).clamp_min_(SCALE_FLOOR)
    else:
        scale_B = fp32_quotient(w_BM.abs().amax(-1).clamp_min_(SCALE_FLOOR), fmt.max_level)
    if fmt.scale == "lloyd_max":
        for _ in range(LLOYD_MAX_STEPS):
            scale_B = _refit(w_BM, _levels(w_BM, scale_B, fmt))
    q_BM.copy_(_levels(w_BM, scale_B, fmt))
    return scale_B


def _levels(w_BM: Tensor, scale_B: Tensor, fmt: WeightFormat) -> Tensor:
    """Nearest level of each weight, as fp32 [..., M]; binary has no zero and sends 0 to +1."""
    if fmt.quantizer == "binary":
        return (w_BM >= 0).to(torch.float32).mul_(2).sub_(1)
    inverse_B = scale_B.reciprocal()
    return w_BM.mul(inverse_B[..., None]).round_().clamp_(-fmt.max_level, fmt.max_level)


def _refit(w_BM: Tensor, q_BM: Tensor) -> Tensor:
    """Least-squares scale of fixed levels, <w, q> / <q, q>, at least the floor (as when all are zero)."""
    energy_B = q_BM.square().sum(-1, dtype=torch.float64).to(torch.float32).clamp_min_(1)
    return fp32_quotient(fixed_order_sum(w_BM * q_BM), energy_B).clamp_min_(SCALE_FLOOR)
