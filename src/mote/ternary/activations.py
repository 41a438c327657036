"""Activations to INT8, one scale per token, or per token and group of inputs (absmax).

    a = max(max|x|, 1e-5)      x_q = clip(round(x * (127 / a)), -128, 127)      s = a / 127      x ~ s * x_q

fp32 whatever the dtype of x, rounding half to even, both quotients correctly rounded divisions: every
implementation gives the same integers. Shape suffixes: T tokens (any leading shape), K inputs, G = ceil(K / group)
groups.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from mote.ternary.scales import SCALE_FLOOR, fp32_quotient

INT8_MAX = 127


@torch.no_grad()
def quantize_activation(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """x_TK: [..., K], any floating dtype, K >= 1. Returns (x_q int8 [..., K], s fp32 [...]).

    A NaN or Inf in a token makes that token's s NaN or Inf, so it is never hidden; its integers are then
    unspecified.
    """
    x_TK = x_TK.detach().to(torch.float32)
    peak_T = x_TK.abs().amax(-1).clamp_min_(SCALE_FLOOR)
    x_q_TK = x_TK.mul(fp32_quotient(float(INT8_MAX), peak_T)[..., None]).round_().clamp_(-INT8_MAX - 1, INT8_MAX)
    return x_q_TK.to(torch.int8), fp32_quotient(peak_T, INT8_MAX)


def quantize_activation_grouped(x_TK: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The same per group of `group` inputs, the last possibly shorter: (x_q int8 [..., K], s fp32 [..., G])."""
    cols = x_TK.shape[-1]
    # Zeros change no maximum, and quantise to zeros that are cut off again.
    parts = torch.unflatten(pad(x_TK.detach().to(torch.float32), (0, -cols % group)), -1, (-1, group))
    x_q, s_TG = quantize_activation(parts)
    return x_q.flatten(-2)[..., :cols].contiguous(), s_TG
