"""GPTQ: columns are rounded one after the other, and each one's error is made up for by those that are still to come.

    H = 2/n sum x x^T        e = (w_k - q_k) / U_kk        w_j -= e U_kj  for j > k        U = chol(H^-1), upper

over the inputs x that the matrix met while the model read the calibration data. The library's arithmetic throughout;
its scales are rounded to bf16 the moment they are chosen, so that it compensates the errors of what is stored.

Shape suffixes: N rows, K columns, G groups, R input rows.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mote.compress.methods.libraries import library
from mote.errors import FormatError
from mote.ternary.codecs import CODECS
from mote.ternary.format import WeightFormat, integer_codec
from mote.ternary.integers import IntegerWeight, given_integers

DAMP = 0.01
"""Share of H's mean diagonal that is added to its diagonal."""
DAMP_STEPS = 4
"""How often the damping is raised tenfold where the factorisation fails."""
BLOCK = 512
"""Rows of H that are added to at a time."""


class Inputs:
    """H of the inputs of one matrix, or of several that read the same; `rows` counts the inputs seen."""

    def __init__(self, cols: int) -> None:
        # On and below the diagonal alone: half of the work, which had been a third of a run's time.
        self._lower = torch.zeros(cols, cols)
        self.rows = 0

    def add(self, x_RK: Tensor) -> None:
        """Adds inputs [R, K]."""
        x_RK = x_RK.float()
        for start in range(0, x_RK.shape[1], BLOCK):
            stop = start + BLOCK
            self._lower[start:stop, :stop].addmm_(x_RK[:, start:stop].T, x_RK[:, :stop])
        self.rows += len(x_RK)

    def hessian(self) -> Tensor:
        """fp32 [K, K], newly made."""
        sums = self._lower.tril()
        return sums.add_(sums.tril(-1).T).mul_(2 / max(self.rows, 1))


class Gptq:
    """The method as `walk` takes it."""

    def inputs(self, name: str, cols: int) -> Inputs:
        """A record of the inputs of the matrix `name`."""
        return Inputs(cols)

    def memory(self, watched: Mapping[str, tuple[int, float]]) -> int:
        """Bytes of every H, and of the four copies of one that factorising it takes."""
        squares = [4 * cols * cols for cols, _ in watched.values()]
        return sum(squares) + 4 * max(squares, default=0)

    def quantize(self, w_NK: Tensor, inputs: Inputs, fmt: WeightFormat) -> IntegerWeight:
        """See `quantize`."""
        return quantize(w_NK, inputs, fmt)

    def network(self, weights: dict[str, Tensor], inputs: dict[str, Any], fmt: WeightFormat) -> dict[str, Tensor]:
        """The matrices as they are."""
        return weights


@torch.no_grad()
def quantize(w_NK: Tensor, inputs: Inputs, fmt: WeightFormat) -> IntegerWeight:
    """w_NK: [N, K], any float dtype. inputs: what the matrix read. fmt: an integer format, symmetric or not.

    Columns of large H_kk go first, with the scales of all groups fixed beforehand ("activation order, static groups"):
    without, errors are a quarter larger at 4 bits (studies/LOG.md). Raises RecipeError without the library, FormatError
    for NaN, Inf, or inputs whose H has no factor.
    """
    if not bool(torch.isfinite(w_NK).all()):
        raise FormatError(f"weight of shape {tuple(w_NK.shape)} holds NaN or Inf; repair the checkpoint first")
    w_NK, h_KK = w_NK.float().clone(), inputs.hessian()
    # As the library does before it starts; what was never read may be anything.
    w_NK[:, h_KK.diagonal() == 0] = 0
    codec = CODECS[integer_codec(fmt) or ""]
    quantizer = _quantizer(fmt, low=codec.low, high=codec.high)
    scale_NG, zero_NG, q_NK = _run(w_NK, h_KK, quantizer, fmt.group)
    expand = {"repeats": fmt.group, "dim": 1}
    signed_NK = (q_NK / scale_NG.repeat_interleave(**expand)[:, : w_NK.shape[1]]).round_()
    if fmt.symmetric:
        return given_integers(signed_NK.to(torch.int16), scale_NG, None, fmt)
    codes_NK = signed_NK + zero_NG.repeat_interleave(**expand)[:, : w_NK.shape[1]]
    return given_integers(codes_NK.to(torch.int16), scale_NG, zero_NG, fmt)


def _run(w_NK: Tensor, h_KK: Tensor, quantizer: Any, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """(scales, zero points [N, G], dequantised weights [N, K])."""
    layer = nn.Linear(w_NK.shape[1], w_NK.shape[0], bias=False, device="meta")
    for step in range(DAMP_STEPS):
        gptq = library("gptq").GPTQ(layer, w_NK, "cpu")
        gptq.H, gptq.quantizer = h_KK.clone(), quantizer
        try:
            *_, q_NK = gptq.fasterquant(
                w_NK.clone(),
                blocksize=128,
                percdamp=DAMP * 10**step,
                groupsize=group,
                act_order=True,
                static_groups=True,
            )
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        # Of scales and zero points it returns the last group's only.
        return *_static_groups(w_NK, quantizer, group), q_NK
    raise FormatError("the inputs of calibration are too few or too alike for gptq; raise --samples")


def _static_groups(w_NK: Tensor, quantizer: Any, group: int) -> tuple[Tensor, Tensor]:
    scales, zeros = [], []
    for start in range(0, w_NK.shape[1], group):
        quantizer.find_params(w_NK[:, start : start + group], weight=True)
        scales.append(quantizer.scale)
        zeros.append(quantizer.zero)
    return torch.cat(scales, dim=1), torch.cat(zeros, dim=1)


def _quantizer(fmt: WeightFormat, *, low: int, high: int) -> Any:
    """The library's rule for scales and zero points, on our grid and with scales that fit in bf16."""
    base = library("gptq").Quantizer

    class Stored(base):  # type: ignore[misc, valid-type]
        scale: Tensor
        zero: Tensor

        def find_params(self, x: Tensor, weight: bool = False) -> None:
            # With the mirrored weights beside it a group without negative ones is symmetric too.
            super().find_params(torch.cat([x, -x], dim=1) if self.sym else x, weight=weight)
            self.scale = self.scale.to(torch.bfloat16).float()
            if self.sym:
                self.zero = torch.full_like(self.scale, -low)

    quantizer = Stored()
    settings = {"bits": fmt.bits, "sym": fmt.symmetric, "perchannel": True, "mse": False, "dtype": "int"}
    quantizer.configure({**settings, "group_size": fmt.group, "use_double_quant": False, "double_quant_sym": False})
    quantizer.maxq = high - low
    return quantizer
