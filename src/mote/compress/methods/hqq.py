"""HQQ: zero points that make |W - dequantised|^0.7 small, found by a few steps of half-quadratic splitting; no data.

    code = clip(round(w / s + z), 0, 2^B - 1)        w ~ s (code - z)

The library gives s and z; both are rounded to bf16, as they are stored, and the codes are then chosen by the library's
own formula above, so that they are the nearest ones to what is stored. Its zero points are not integers, and its grid
has no symmetric form.

Shape suffixes: N rows, K columns, G groups, M weights of a group.
"""

import gc
from typing import Any

import torch
from torch import Tensor

from mote.compress.methods.libraries import library
from mote.errors import FormatError
from mote.ternary.format import WeightFormat
from mote.ternary.integers import IntegerWeight, given_integers


@torch.no_grad()
def quantize(w_NK: Tensor, fmt: WeightFormat) -> IntegerWeight:
    """w_NK: [N, K], any float dtype. fmt: an integer format that is not symmetric.

    Raises RecipeError without the library, FormatError for a symmetric format, NaN or Inf.
    """
    if fmt.symmetric:
        raise FormatError("hqq chooses zero points, which a symmetric grid has no place for; ask for an asymmetric one")
    w_NK = w_NK.float()
    full = w_NK.shape[1] // fmt.group * fmt.group
    pieces = [(w_NK[:, :full], fmt.group), (w_NK[:, full:], w_NK.shape[1] - full)]
    parts = [_groups(w, group, fmt.bits) for w, group in pieces if w.numel()]
    codes, scale, zero = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    if not bool(torch.isfinite(scale).all() and torch.isfinite(zero).all()):
        raise FormatError(f"weight of shape {tuple(w_NK.shape)} holds NaN or Inf; repair the checkpoint first")
    return given_integers(codes, scale, zero, fmt)


def _groups(w_NK: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K], scales and zero points [N, K / group] of whole groups."""
    rows = len(w_NK)
    w_BM = w_NK.reshape(-1, group)
    settings = library("hqq", "config").QTensorConfig(
        nbits=bits, channel_wise=True, group_size=group, optimize=True, round_zero=False, pack=False
    )
    # It groups along the first dimension, so each of our groups is one column of what it gets.
    columns_MB = w_BM.t().contiguous()
    gc.freeze()  # it collects garbage twice a matrix, which takes ten times as long as its own work
    try:
        found = _handle().quantize(columns_MB, settings)
    finally:
        gc.unfreeze()
    scale_NG, zero_NG = (t.to(torch.bfloat16).float().view(rows, -1) for t in (found.scale, found.zero))
    codes_BM = (w_BM / scale_NG.view(-1, 1) + zero_NG.view(-1, 1)).round_().clamp_(0, 2**bits - 1)
    return codes_BM.to(torch.int16).view(rows, -1), scale_NG, zero_NG


def _handle() -> Any:
    base = library("hqq", "core").HQQTensorHandle
    # 6 bits, which it lists only where its own packing has a layout for them.
    return type("Handle", (base,), {"SUPPORTED_BITS": [8, 6, 4, 3, 2]})
