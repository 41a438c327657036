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
from mote.ternary.scales import SCALE_FLOOR, fixed_order_sum_, fp32_quotient, mean_abs

LLOYD_MAX_STEPS = 8
"""Rounds of re-assign and re-fit; the scale of normal weights is then 2e-4 from the fixed point, 1.2236 sigma."""

_PIECE = 1 << 18
"""Weights handled at once: 1 MiB of fp32, which stays in the cache from one elementwise pass to the next."""


class QuantizedWeight(NamedTuple):
    """q: int8 [..., N, K]. scale: fp32 [...] (tensor), [..., N] (row) or [..., N, G] (group)."""

    q: Tensor
    scale: Tensor


@torch.no_grad()
def quantize_weight(w: Tensor, fmt: WeightFormat) -> QuantizedWeight:
    """Quantise one matrix [N, K], or a stack [..., N, K] matrix by matrix.

    w: any floating dtype, upcast to fp32. Raises FormatError for a NaN or infinite weight, an empty matrix,
    quantizer "none", and "absmean" on an n-bit grid, which nobody has defined.
    Neither are "given" scales nor zero points defined here: these belong to matrices that are quantised after training.
    Sources: absmean arXiv 2402.17764; TWN (Lloyd-Max) arXiv 1605.04711.
    """
    _check(w, fmt)
    rows, cols = w.shape[-2:]
    w_ENK = w.detach().reshape(-1, rows, cols)
    q_ENK = torch.empty(w_ENK.shape, dtype=torch.int8, device=w.device)
    per_matrix = {"tensor": (), "row": (rows,), "group": (rows, -(-cols // (fmt.group or cols)))}[fmt.granularity]
    scale_E = torch.empty(len(w_ENK), *per_matrix, dtype=torch.float32, device=w.device)
    for w_NK, q_NK, scale in zip(w_ENK, q_ENK, scale_E, strict=True):
        _quantize_matrix(w_NK, q_NK, scale, fmt)
    if not bool(torch.isfinite(scale_E).all()):
        raise FormatError(
            f"weight of shape {tuple(w.shape)} holds NaN, Inf or values whose sum overflows fp32; "
            "repair or retrain the checkpoint before quantising it"
        )
    return QuantizedWeight(q_ENK.view(w.shape), scale_E.view((*w.shape[:-2], *per_matrix)))


def dequantize_weight(q: Tensor, scale: Tensor, fmt: WeightFormat, dtype: torch.dtype = torch.float32) -> Tensor:
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
    if fmt.scale == "given" or not fmt.symmetric:
        raise FormatError(
            f"{fmt.quantizer} with given scales or zero points is no grid of training; use absmax, symmetric"
        )
    if w.dim() < 2 or w.numel() == 0 or not w.is_floating_point():
        raise FormatError(f"a weight must be a non-empty floating-point [..., rows, columns]; got {w.dtype} {w.shape}")


def _quantize_matrix(w_NK: Tensor, q_NK: Tensor, scale: Tensor, fmt: WeightFormat) -> None:
    """Write q_NK and scale ([], [N] or [N, G]), a piece at a time so that temporaries stay in the cache."""
    if fmt.granularity == "tensor":
        _quantize_blocks(w_NK.reshape(1, -1), q_NK.view(1, -1), scale.view(1), fmt)
        return
    cols = w_NK.shape[1]
    full = cols // fmt.group * fmt.group if fmt.group else 0
    step = max(1, _PIECE // cols)
    for w_RK, q_RK, scale_R in zip(
        torch.split(w_NK, step), torch.split(q_NK, step), torch.split(scale, step), strict=True
    ):
        if fmt.granularity == "row":
            _quantize_blocks(w_RK, q_RK, scale_R, fmt)
            continue
        if full:
            groups = (full // fmt.group, fmt.group)
            w_RGM = torch.unflatten(w_RK[:, :full], -1, groups)
            _quantize_blocks(w_RGM, torch.unflatten(q_RK[:, :full], -1, groups), scale_R[:, : groups[0]], fmt)
        if full < cols:
            _quantize_blocks(w_RK[:, full:], q_RK[:, full:], scale_R[:, -1], fmt)


def _quantize_blocks(w_BM: Tensor, q_BM: Tensor, scale_B: Tensor, fmt: WeightFormat) -> None:
    """Quantise blocks [..., M], each with its own scale: writes q_BM int8 [..., M] and scale_B fp32 [...]."""
    w_BM = w_BM.to(torch.float32)
    scale_B.copy_(_first_scale(w_BM, fmt))
    if fmt.scale == "lloyd_max":
        magnitude_BM = w_BM.abs()  # the scale does not depend on signs
        for _ in range(LLOYD_MAX_STEPS):
            scale_B.copy_(_refit(magnitude_BM, _levels(magnitude_BM, scale_B, fmt)))
    for w_piece, q_piece in zip(torch.split(w_BM, _PIECE, dim=-1), torch.split(q_BM, _PIECE, dim=-1), strict=True):
        q_piece.copy_(_levels(w_piece, scale_B, fmt))


def _first_scale(w_BM: Tensor, fmt: WeightFormat) -> Tensor:
    """absmean or absmax, or where Lloyd-Max starts: absmean on {-1, 0, 1}, else the range 4 mean|w|."""
    if fmt.max_level == 1 and fmt.scale != "absmax":
        return mean_abs(w_BM).clamp_min_(SCALE_FLOOR)
    peak_B = w_BM.abs().amax(-1)
    if fmt.scale == "lloyd_max":
        peak_B = torch.minimum(peak_B, mean_abs(w_BM).mul_(4))
    return fp32_quotient(peak_B.clamp_min_(SCALE_FLOOR), fmt.max_level)


def _levels(w_BM: Tensor, scale_B: Tensor, fmt: WeightFormat) -> Tensor:
    """Nearest level of each weight, as fp32 [..., M]; binary has no zero and sends 0 to +1."""
    if fmt.quantizer == "binary":
        return (w_BM >= 0).to(torch.float32).mul_(2).sub_(1)
    inverse_B = scale_B.reciprocal()
    return w_BM.mul(inverse_B[..., None]).round_().clamp_(-fmt.max_level, fmt.max_level)


def _refit(w_BM: Tensor, q_BM: Tensor) -> Tensor:
    """Least-squares scale of fixed levels, <w, q> / <q, q>, at least the floor; overwrites q_BM."""
    exact = w_BM.shape[-1] * 127**2 < 2**24  # an fp32 sum of integers below 2^24 is exact in any order
    energy_B = q_BM.square().sum(-1, dtype=torch.float32 if exact else torch.float64).to(torch.float32)
    product_B = fixed_order_sum_(q_BM.mul_(w_BM))
    return fp32_quotient(product_B, energy_B.clamp_min_(1)).clamp_min_(SCALE_FLOOR)
