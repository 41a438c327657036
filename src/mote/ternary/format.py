"""How a class of weight matrices is quantised: the one description that training, packing, kernels share."""

from dataclasses import dataclass
from typing import Literal

from mote.errors import FormatError

Quantizer = Literal["none", "ternary", "binary", "int2", "int3", "int4", "int6", "int8"]
ScaleRule = Literal["absmean", "lloyd_max", "absmax"]
Granularity = Literal["tensor", "row", "group"]
ActivationDtype = Literal["int8", "int8_group", "none"]

QUANTIZERS: tuple[Quantizer, ...] = ("none", "ternary", "binary", "int2", "int3", "int4", "int6", "int8")


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """Numbers of one class of matrices W (rows N = outputs, columns K = inputs).

    quantizer: the integer grid; "none" keeps the weights as they are. "ternary" is {-1, 0, 1}, "binary"
        {-1, 1}, "intB" the symmetric range +-(2^(B-1) - 1).
    scale: how the step is chosen: "absmean" (BitNet b1.58; the paper's), "lloyd_max" (the fixed point of
        re-assigning levels and re-fitting the scale, TWN), "absmax" (n-bit round to nearest).
    granularity: one scale per matrix ("tensor", the paper's), per output row, or per group of `group` inputs.
    group: inputs per group along K; 0 unless granularity is "group".
    activation: what enters the matrix product: "int8" per token (absmax), "int8_group" per token and group of
        inputs, the weights' own groups, or "none" (as it comes).
    """

    quantizer: Quantizer = "ternary"
    scale: ScaleRule = "absmean"
    granularity: Granularity = "tensor"
    group: int = 0
    activation: ActivationDtype = "int8"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("quantizer", self.quantizer, QUANTIZERS),
            ("scale", self.scale, ("absmean", "lloyd_max", "absmax")),
            ("granularity", self.granularity, ("tensor", "row", "group")),
            ("activation", self.activation, ("int8", "int8_group", "none")),
        ):
            if value not in allowed:
                raise FormatError(f"weight format: {name}={value!r} is unknown; use one of {', '.join(allowed)}")
        if (self.granularity == "group") != (self.group > 0):
            raise FormatError(
                f"weight format: group={self.group} with granularity={self.granularity!r}; "
                "a group size goes with granularity 'group' and with nothing else"
            )

        if self.activation == "int8_group" and not self.group:
            raise FormatError(
                "weight format: activation 'int8_group' takes the weights' groups; set granularity 'group'"
            )

    @property
    def max_level(self) -> int:
        """Largest integer magnitude on the grid (0 for "none")."""
        if self.quantizer == "none":
            return 0
        if self.quantizer in ("ternary", "binary"):
            return 1
        return (1 << (int(self.quantizer.removeprefix("int")) - 1)) - 1


FULL_PRECISION = WeightFormat(quantizer="none", activation="none")
