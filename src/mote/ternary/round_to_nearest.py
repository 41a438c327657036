"""Weights to n-bit integers by round to nearest, with scales that fit in bf16, one per row and group of inputs.

    symmetric     a = max(max|w|, 1e-5)    s = bf16(a / L)    q = clip(round(w * (1 / s)), -L, L)       w ~ s * q
    otherwise     a = max(max(w, 0) - min(w, 0), 1e-5)        s = bf16(a / C)
                  z = clip(round(-min(w, 0) * (1 / s)), 0, C)
                  code = clip(round(w * (1 / s)) + z, 0, C)                            w ~ s * (code - z)

over the group, with B bits: L = 2^(B-1) - 1 and C = 2^B - 1. In fp32, rounding half to even, and with the scale as it
is stored: integers that were rounded against another scale would not be the nearest ones.

Shape suffixes: N rows, K columns, G = ceil(K / group) groups, M weights of a group, R rows at a time.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from mote.errors import FormatError
from mote.ternary.format import WeightFormat
from mote.ternary.integers import IntegerWeight
from mote.ternary.scales import SCALE_FLOOR, fp32_quotient

_PIECE = 1 << 18
"""Weights handled at once: 1 MiB of fp32, which stays in the cache from one elementwise pass to the next."""


@torch.no_grad()
def round_to_nearest(w_NK: Tensor, fmt: WeightFormat) -> IntegerWeight:
    """w_NK: [N, K], any floating dtype. Returns q, scales whose values are bf16's, and integer zero points or None.

    fmt: of an n-bit grid, with "absmax" scales per group. Raises FormatError for another format, NaN or Inf.
    """
    if fmt.granularity != "group" or fmt.scale != "absmax" or not fmt.bits:
        raise FormatError(f"round to nearest needs an n-bit grid and absmax scales per group; got {fmt}")
    rows, cols = w_NK.shape
    q_NK = torch.empty(rows, cols, dtype=torch.int8, device=w_NK.device)
    scale_NG = torch.empty(rows, -(-cols // fmt.group), dtype=torch.float32, device=w_NK.device)
    zero_NG = None if fmt.symmetric else torch.empty_like(scale_NG)
    step = max(1, _PIECE // cols)
    for start in range(0, rows, step):
        piece = slice(start, start + step)
        # Zeros fill up the last group: they change no extreme, and their integers are cut off again.
        w_RGM = pad(w_NK[piece].detach().to(torch.float32), (0, -cols % fmt.group))
        w_RGM = torch.unflatten(w_RGM, -1, (-1, fmt.group))
        zero_RG = None if zero_NG is None else zero_NG[piece]
        levels = _levels(w_RGM, scale_NG[piece], zero_RG, fmt)
        q_NK[piece].copy_(levels.flatten(-2)[:, :cols])
    if not bool(torch.isfinite(scale_NG).all()):
        raise FormatError(
            f"weight of shape {tuple(w_NK.shape)} holds NaN or Inf; repair or retrain the checkpoint before packing it"
        )
    return IntegerWeight(q_NK, scale_NG, zero_NG)


def nearest(w_NK: Tensor, fmt: WeightFormat) -> IntegerWeight:
    """`round_to_nearest` on the grid of a format whose scales a method gives, where that leaves a matrix alone."""
    return round_to_nearest(w_NK, replace(fmt, scale="absmax"))


def _levels(w_RGM: Tensor, scale_RG: Tensor, zero_RG: Tensor | None, fmt: WeightFormat) -> Tensor:
    """The integers as fp32 [R, G, M]; writes scales and zero points."""
    if zero_RG is None:
        peak_RG, top = w_RGM.abs().amax(-1), fmt.max_level
    else:
        low_RG, high_RG = (extreme(w_RGM, dim=-1) for extreme in (torch.amin, torch.amax))
        low_RG, top = low_RG.clamp_max_(0), (1 << fmt.bits) - 1
        peak_RG = high_RG.clamp_min_(0).sub_(low_RG)
    scale_RG.copy_(fp32_quotient(peak_RG.clamp_min_(SCALE_FLOOR), top).to(torch.bfloat16))
    inverse_RG = scale_RG.reciprocal()
    levels = w_RGM.mul(inverse_RG[..., None]).round_()
    if zero_RG is None:
        return levels.clamp_(-top, top)
    zero_RG.copy_(low_RG.neg_().mul_(inverse_RG).round_().clamp_(0, top))
    return levels.add_(zero_RG[..., None]).clamp_(0, top).sub_(1 << (fmt.bits - 1))
