"""The exact integer product of INT8 activations and integer weights, by whatever is exact and fast here.

    acc[t, n] = sum_k x_q[t, k] * q[n, k]        int32

`torch._int_mm` is oneDNN's INT8 product. torch 2.13 on a CPU, all of 19^3 shapes up to 128 tried
(2026-11-22): it is exact with VNNI or AMX except for K = 1, where it is wrong, and it saturates silently
without VNNI; on an AVX2 machine where it is exact (Zen 3, torch 2.13) it took 40 times as long as fp32. So it is
used only where a probe with saturating operands passes and it keeps up with fp32. Elsewhere the product runs in
fp32, where every partial sum is an integer below 2^24 and therefore exact in any order; longer sums are cut
into blocks of inputs and added as integers.

Shape suffixes: T tokens, N outputs, K inputs.
"""

import time
from collections.abc import Callable
from functools import cache
from itertools import product

import torch
from torch import Tensor

_FP32_EXACT = 2**24
_MIN_INPUTS = 4


def integer_matmul(x_q_TK: Tensor, q_NK: Tensor, max_level: int = 127) -> Tensor:
    """int8 [T, K] times int8 [N, K] transposed -> int32 [T, N], exact.

    max_level: bound on |q|, which lets fp32 take longer sums at once (ternary: K up to 131,072).
    """
    cols = x_q_TK.shape[-1]
    if x_q_TK.device.type == "cpu" and cols >= _MIN_INPUTS and x_q_TK.numel() and int8_matmul_pays():
        return torch._int_mm(x_q_TK, q_NK.t())
    block = (_FP32_EXACT - 1) // (128 * max_level)
    if cols <= block:
        return _fp32_block(x_q_TK, q_NK)
    acc = torch.zeros(x_q_TK.shape[0], q_NK.shape[0], dtype=torch.int32, device=x_q_TK.device)
    for start in range(0, cols, block):
        acc += _fp32_block(x_q_TK[:, start : start + block], q_NK[:, start : start + block])
    return acc


@cache
def int8_matmul_is_exact() -> bool:
    """Whether `torch._int_mm` keeps the largest operands exact on this CPU (it does with VNNI or AMX).

    Both extremes are needed: kernels shift one operand to 0..255, which hides the saturation of the other end.
    """
    for x_level, q_level in product((-128, 127), (-127, 127)):
        for tokens, outputs, inputs in product((1, 33), (1, 32, 65), (33, 96)):
            x_q_TK = torch.full((tokens, inputs), x_level, dtype=torch.int8)
            q_NK = torch.full((outputs, inputs), q_level, dtype=torch.int8)
            if not bool((torch._int_mm(x_q_TK, q_NK.t()) == x_level * q_level * inputs).all()):
                return False
    return True


@cache
def int8_matmul_pays() -> bool:
    """Whether `torch._int_mm` is exact on this CPU and at most twice as slow as fp32: the same integers either way."""
    if not int8_matmul_is_exact():
        return False
    x_q_TK, q_NK = (torch.ones(rows, 256, dtype=torch.int8) for rows in (64, 256))
    return _shortest(lambda: torch._int_mm(x_q_TK, q_NK.t())) < 2 * _shortest(lambda: _fp32_block(x_q_TK, q_NK))


def _shortest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of eight calls, after one that is not timed."""
    call()
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _fp32_block(x_q_TK: Tensor, q_NK: Tensor) -> Tensor:
    with torch.autocast(x_q_TK.device.type, enabled=False):
        return torch.mm(x_q_TK.to(torch.float32), q_NK.to(torch.float32).t()).to(torch.int32)
