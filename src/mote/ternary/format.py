"""How a class of weight matrices is quantised: the one description that training, packing, kernels share."""

from dataclasses import dataclass
from typing import Literal

from mote.errors import FormatError

Quantizer = Literal["none", "ternary", "binary", "int2", "int3", "int4", "int6", "int8"]
ScaleRule = Literal["absmean", "lloyd_max", "absmax", "given"]
Granularity = Literal["tensor", "row", "group"]
ActivationDtype = Literal["int8", "int8_group", "none"]
IntegerCodec = Literal["int2", "int3", "int4", "int6", "int8", "uint8"]

Storage = Literal["none", "int2", "int3", "int4", "int6", "int8"]
"""How weights that were trained in full precision are stored: as they are, or as integers with scales per group."""
GROUPS = (32, 64, 128)
"""Inputs per scale of stored integers."""
QUANTIZERS: tuple[Quantizer, ...] = ("none", "ternary", "binary", "int2", "int3", "int4", "int6", "int8")


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """Numbers of one class of matrices W (rows N = outputs, columns K = inputs).

    quantizer: the integer grid; "none" keeps the weights as they are. "ternary" is {-1, 0, 1}, "binary"
        {-1, 1}, "intB" B bits: the range +-(2^(B-1) - 1), or 2^B codes from 0 where it is not symmetric.
    scale: how the step is chosen: "absmean" (BitNet b1.58; the paper's), "lloyd_max" (the fixed point of
        re-assigning levels and re-fitting the scale, TWN), "absmax" (n-bit round to nearest: of a grid that is not
        symmetric, from the smallest to the largest weight), "given" (by whoever made the integers, such as GPTQ).
    granularity: one scale per matrix ("tensor", the paper's), per output row, or per group of `group` inputs.
    group: inputs per group along K; 0 unless granularity is "group".
    activation: what enters the matrix product: "int8" per token (absmax), "int8_group" per token and group of
        inputs, the weights' own groups, or "none" (as it comes).
    symmetric: w ~ scale * q, q around 0. False, for "intB" with a scale per group only: w ~ scale * (code - zero) with
        a zero point per row and group, an integer or not.
    """

    quantizer: Quantizer = "ternary"
    scale: ScaleRule = "absmean"
    granularity: Granularity = "tensor"
    group: int = 0
    activation: ActivationDtype = "int8"
    symmetric: bool = True

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("quantizer", self.quantizer, QUANTIZERS),
            ("scale", self.scale, ("absmean", "lloyd_max", "absmax", "given")),
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
        if not isinstance(self.symmetric, bool):
            raise FormatError(f"weight format: symmetric={self.symmetric!r} is not true or false")
        if not self.symmetric and (not self.bits or not self.group):
            raise FormatError(
                f"weight format: symmetric=False with {self.quantizer} per {self.granularity}; zero points go with an "
                "integer grid and a scale per group"
            )

    @property
    def bits(self) -> int:
        """Bits of an integer grid, 2 to 8; 0 for other grids."""
        return int(self.quantizer.removeprefix("int")) if self.quantizer.startswith("int") else 0

    @property
    def max_level(self) -> int:
        """Largest integer magnitude on the symmetric grid (0 for "none")."""
        if self.quantizer == "none":
            return 0
        return (1 << (self.bits - 1)) - 1 if self.bits else 1


def integer_codec(fmt: WeightFormat) -> IntegerCodec | None:
    """The integer codec that holds matrices of this format, or None for a format that none holds.

    INT8 activations with a scale per group are what tells weights that are stored packed from weights that are kept as
    floats and quantised on the fly.
    """
    if fmt.activation != "int8_group" or fmt.granularity != "group" or fmt.scale not in ("absmax", "given"):
        return None
    if fmt.quantizer == "int8":
        return "int8" if fmt.symmetric else "uint8"
    return fmt.quantizer if fmt.quantizer in ("int2", "int3", "int4", "int6") else None


FULL_PRECISION = WeightFormat(quantizer="none", activation="none")


def stored_format(storage: Storage, group: int, *, symmetric: bool) -> WeightFormat:
    """The format of matrices in `storage`, with a scale per `group` inputs, one of `GROUPS`."""
    if storage == "none":
        return FULL_PRECISION
    return WeightFormat(
        quantizer=storage,
        scale="absmax",
        granularity="group",
        group=group,
        activation="int8_group",
        symmetric=symmetric,
    )
