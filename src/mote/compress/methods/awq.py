"""AWQ: what a matrix reads most gets finer steps, by scales that its producer takes back.

    up'[i, :] = up[i, :] / s_i      down'[:, i] = down[:, i] s_i      so that down'(silu(gate h) * up' h) is as before

Usually the norm before a matrix takes the scales. That norm also feeds the router and the ternary experts, which must
go on reading what they were trained on: so scales go through the pair up -> down only, which is inside of one network.
They are the library's, which tries twenty of them with its own rounding; then everything is rounded to nearest.

Shape suffixes: N rows, K columns, F ffn width, H hidden, R input rows.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mote.compress.methods.libraries import library
from mote.ternary.format import WeightFormat
from mote.ternary.integers import IntegerWeight
from mote.ternary.round_to_nearest import nearest

ROWS = 2048
"""Input rows that the search for a matrix's scales looks at; it multiplies each of them forty times."""


class Inputs:
    """A sample of the inputs of one matrix; `rows` counts all inputs seen.

    share: of the rows to keep, evenly spaced; 0 keeps none and only counts.
    """

    def __init__(self, share: float) -> None:
        self._share, self._kept = share, list[Tensor]()
        self.rows = 0

    def add(self, x_RK: Tensor) -> None:
        """Takes its part of the inputs [R, K], the first of all in any case, for experts that see few."""
        number = torch.arange(self.rows, self.rows + len(x_RK) + 1).mul(self._share).ceil().long()
        kept = number.diff().bool()
        if bool(kept.any()):
            self._kept.append(x_RK[kept].float())
        self.rows += len(x_RK)

    def sample(self) -> Tensor | None:
        """fp32 [R, K], None where nothing was kept."""
        return torch.cat(self._kept) if self._kept else None


@dataclass(frozen=True)
class Awq:
    """The method as `walk` takes it; tokens: of all calibration data."""

    tokens: int

    def inputs(self, name: str, cols: int) -> Inputs:
        """A record of the inputs of the matrix `name`."""
        return Inputs(self._share(name))

    def memory(self, watched: Mapping[str, tuple[int, float]]) -> int:
        """Bytes of the sampled rows."""
        return sum(4 * cols * math.ceil(rows * self._share(name)) for name, (cols, rows) in watched.items())

    def _share(self, name: str) -> float:
        return min(1.0, ROWS / self.tokens) if "down_proj" in name else 0.0

    def quantize(self, w_NK: Tensor, inputs: Inputs, fmt: WeightFormat) -> IntegerWeight:
        """w_NK [N, K] rounded to nearest."""
        return nearest(w_NK, fmt)

    def network(self, weights: dict[str, Tensor], inputs: dict[str, Inputs], fmt: WeightFormat) -> dict[str, Tensor]:
        """Moves scales between up and down."""
        sample = inputs["down_proj"].sample()
        if sample is None:
            return weights
        up, down = balance(weights["up_proj"], weights["down_proj"], sample, fmt)
        return {**weights, "up_proj": up, "down_proj": down}


@torch.no_grad()
def balance(up_FH: Tensor, down_HF: Tensor, x_RF: Tensor, fmt: WeightFormat) -> tuple[Tensor, Tensor]:
    """(up, down) in fp32, which compute what they did, with down the easier one to round.

    x_RF: a sample of what down reads. Raises RecipeError without the library.
    """
    whole = down_HF.shape[1] // fmt.group * fmt.group  # the library takes whole groups; what is left keeps scale 1
    if not whole:
        return up_FH.float(), down_HF.float()
    up, down = _linear(up_FH[:whole]), _linear(down_HF[:, :whole])
    model = nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict({"up": up, "down": down})])
    pair = ("layers.0.down",)
    search = library("awq").ActAwareWeightQuant(
        model,
        example_inputs=torch.zeros(1),
        bits=fmt.bits,
        group_size=fmt.group,
        scheme="sym" if fmt.symmetric else "asym",
        weight_config={},
        device="cpu",
    )
    search.absorb_layer_dict = {pair: "layers.0.up"}
    with _width(fmt.bits):
        try:
            found = search.search_scale(model.layers[0], "layers.0", [pair], {"down": {"input": [x_RF[:, :whole]]}})
        except AssertionError:  # nothing but NaN, as where a group is all zeros
            return up_FH.float(), down_HF.float()
        search.apply_scale(found)
    left = up_FH[whole:].float(), down_HF[:, whole:].float()
    return torch.cat([up.weight, left[0]]), torch.cat([down.weight, left[1]], dim=1)


def _linear(w_NK: Tensor) -> nn.Linear:
    linear = nn.Linear(w_NK.shape[1], w_NK.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(w_NK.float().clone(), requires_grad=False)
    return linear


@contextmanager
def _width(bits: int) -> Iterator[None]:
    """Makes the library's search round to `bits`: neural-compressor 3.10 passes them under a name that its rounding
    ignores, and so searches for 4 bits whatever was asked for."""
    rounding = library("awq", "utility")
    original = rounding.quant_tensor
    rounding.quant_tensor = partial(original, bits=bits)
    try:
        yield
    finally:
        rounding.quant_tensor = original
