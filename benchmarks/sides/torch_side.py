"""torch: dense products in fp32 and bf16, and its int8 product (weights and activations int8, int32 out)."""

import numpy as np
import torch

from benchmarks.sides.product import Floats, Problem, Product


def product(name: str, problem: Problem) -> Product:
    """ "f32" or "bf16" (mm), or "int8" (torch._int_mm; activations are quantised per token inside)."""
    torch.set_num_threads(problem.threads)
    q_NK, x_TK = torch.from_numpy(problem.q_NK), torch.from_numpy(problem.x_TK)
    if name != "int8":
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        one = (q_NK.float() * problem.scale).to(dtype)
        copies = one.repeat(problem.count, 1, 1).transpose(1, 2)

        def run() -> Floats:
            x = x_TK.to(dtype)
            for w_KN in copies:
                y_TN = x @ w_KN
            return y_TN.float().numpy()

        return Product(run=run, nbytes=one.numel() * one.element_size(), precision=f"{name} x {name}")
    copies = q_NK.repeat(problem.count, 1, 1).transpose(1, 2)

    def run_int8() -> Floats:
        s_T1 = x_TK.abs().amax(1, keepdim=True) / 127
        x_q = (x_TK / s_T1).round().to(torch.int8)
        for w_KN in copies:
            y_TN = torch._int_mm(x_q, w_KN)
        return (y_TN.float() * (s_T1 * problem.scale)).numpy().astype(np.float32)

    return Product(run=run_int8, nbytes=problem.q_NK.size, precision="int8 x int8")
