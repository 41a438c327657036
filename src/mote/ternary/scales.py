"""Sums and means whose bits do not depend on the machine, the thread count or the implementation.

    mean|W| = (|w_0| + |w_1| + ... + |w_{n-1}|) / n        in fp32, added in one stated order

An fp32 sum depends on the order of its additions, and a library's order depends on vector width and threads;
a scale that differs in its last bit flips weights that lie next to a rounding boundary. So the sum halves its
operand with elementwise additions only: with n elements left and h = ceil(n / 2), x[i] += x[i + h] for i < n
- h, then n = h.

Shapes: x_XN is any tensor; the sum runs over the last dimension, N.
"""

import torch
from torch import Tensor

SCALE_FLOOR = 1e-5
"""Smallest scale: it keeps the reciprocal of an all-zero matrix or token finite (BitNet b1.58)."""


def fixed_order_sum(x_XN: Tensor) -> Tensor:
    """Sum over the last dimension by repeated halving, in fp32.

    x_XN: [..., n], any floating dtype (upcast to fp32 first); n = 0 sums to 0. Returns fp32 [...].
    """
    return fixed_order_sum_(x_XN.detach().to(torch.float32, copy=True))


def fixed_order_sum_(x_XN: Tensor) -> Tensor:
    """`fixed_order_sum` that overwrites its operand, an fp32 tensor the caller no longer needs."""
    n = x_XN.shape[-1]
    if n == 0:
        return x_XN.sum(-1)
    while n > 1:
        half = (n + 1) // 2
        x_XN[..., : n - half].add_(x_XN[..., half:n])
        n = half
    return x_XN[..., 0].clone()


def mean_abs(x_XN: Tensor) -> Tensor:
    """mean|x| over the last dimension, the sum in the fixed order: fp32 [...], without a floor."""
    magnitude_XN = x_XN.detach().to(torch.float32).abs()
    return fp32_quotient(fixed_order_sum_(magnitude_XN), x_XN.shape[-1])


def fp32_quotient(numerator: Tensor | float, denominator: Tensor | float) -> Tensor:
    """numerator / denominator, one correctly rounded fp32 division per element.

    A Python number beside a tensor is not a division everywhere: `2.0 / t` is computed as reciprocal times 2,
    and CUDA divides by a number by multiplying with its reciprocal. Numbers therefore become tensors first.
    """
    like = numerator if isinstance(numerator, Tensor) else denominator
    device = like.device if isinstance(like, Tensor) else None
    top = torch.as_tensor(numerator, dtype=torch.float32, device=device)
    bottom = torch.as_tensor(denominator, dtype=torch.float32, device=device)
    if bottom.dim() == 0 and top.dim() > 0:
        bottom = bottom.expand_as(top)
    return torch.div(top, bottom)
