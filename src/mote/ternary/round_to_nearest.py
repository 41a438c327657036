"""Weights to n-bit integers by round to nearest, with scales that fit in bf16, one per row and group of inputs.

    a = max(max|w|, 1e-5) over the group      s = bf16(a / L)      q = clip(round(w * (1 / s)), -L, L)      w ~ s * q

L = 7 (int4) or 127 (int8). In fp32, rounding half to even, and with the scale as it is stored: integers that were
rounded against another scale would not be the nearest ones.

Shape suffixes: N rows, K columns, G = ceil(K / group) groups, M weights of a group, R rows at a time.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from mote.errors import FormatError
from mote.ternary.format import WeightFormat
from mote.ternary.quantize import QuantizedWeight
from mote.ternary.scales import SCALE_FLOOR, fp32_quotient

_PIECE = 1 << 18
"""Weights handled at once: 1 MiB of fp32, which stays in the cache from one elementwise pass to the next."""


@torch.no_grad()
def round_to_nearest(w_NK: Tensor, fmt: WeightFormat) -> QuantizedWeight:
    """w_NK: [N, K], any floating dtype. Returns (q int8 [N, K], scale fp32 [N, G] whose values are bf16's).

    fmt: of an n-bit grid, with "absmax" scales per group. Raises FormatError for another format, NaN or Inf.
    """
    if fmt.granularity != "group" or fmt.scale != "absmax" or fmt.max_level < 2:
        raise FormatError(f"round to nearest needs an n-bit grid and absmax scales per group; got {fmt}")
    rows, cols = w_NK.shape
    q_NK = torch.empty(rows, cols, dtype=torch.int8, device=w_NK.device)
    scale_NG = torch.empty(rows, -(-cols // fmt.group), dtype=torch.float32, device=w_NK.device)
    step = max(1, _PIECE // cols)
    for w_RK, q_RK, scale_RG in zip(*(torch.split(t, step) for t in (w_NK.detach(), q_NK, scale_NG)), strict=True):
        # Zeros fill up the last group: they change no maximum, and their integers are cut off again.
        w_RGM = torch.unflatten(pad(w_RK.to(torch.float32), (0, -cols % fmt.group)), -1, (-1, fmt.group))
        scale = fp32_quotient(w_RGM.abs().amax(-1).clamp_min_(SCALE_FLOOR), fmt.max_level)
        scale_RG.copy_(scale.to(torch.bfloat16))
        levels = w_RGM.mul(scale_RG.reciprocal()[..., None]).round_().clamp_(-fmt.max_level, fmt.max_level)
        q_RK.copy_(levels.flatten(-2)[:, :cols])
    if not bool(torch.isfinite(scale_NG).all()):
        raise FormatError(
            f"weight of shape {tuple(w_NK.shape)} holds NaN or Inf; repair or retrain the checkpoint before packing it"
        )
    return QuantizedWeight(q_NK, scale_NG)
