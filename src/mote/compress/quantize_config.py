"""What quantising does, as settings."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from mote.checkpoint.contract import MoteConfig
from mote.compress.config import PackConfig
from mote.errors import RecipeError
from mote.model.precision import Precision
from mote.ternary.format import FULL_PRECISION, Storage, WeightFormat

Method = Literal["rtn", "hqq", "gptq", "awq"]
AUTO: Literal["auto"] = "auto"
CALIBRATED: tuple[Method, ...] = ("gptq", "awq")
"""Methods that need inputs."""


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(PackConfig):
    """Settings of `quantize`: those of `pack`, with shared experts (and dense networks) that are in full precision in
    int4 where `shared` is "auto", and

    method: how integers are chosen, see `mote.compress.methods`.
    samples: conversations that calibration reads. max_length: tokens that each is cut to. seed: of their choice.
    precision: of calibration's forward passes, "auto" as in `train`.
    pictures: whether calibration data without any picture are an error, for a model that was made for pictures.
    """

    shared: Literal[Storage, "auto"] = AUTO  # type: ignore[assignment]
    method: Method = "rtn"
    samples: int = 512
    max_length: int = 2048
    pictures: bool = True
    seed: int = 0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in get_args(Method):
            raise RecipeError(f"quantize: method={self.method!r} is unknown; use one of {', '.join(get_args(Method))}")
        if self.precision not in get_args(Precision):
            raise RecipeError(
                f"quantize: precision={self.precision!r} is unknown; use {', '.join(get_args(Precision))}"
            )
        for name in ("samples", "max_length"):
            if getattr(self, name) < 1:
                raise RecipeError(f"quantize: {name}={getattr(self, name)} is not 1 or more")
        if self.method == "hqq" and self.symmetric:
            raise RecipeError("quantize: hqq chooses zero points, so its grid is not symmetric; say --asymmetric")

    def allowed(self, name: str) -> tuple[str, ...]:
        """As in packing, and "auto" for shared experts."""
        return (*super().allowed(name), *([AUTO] if name == "shared" else []))

    @property
    def calibrated(self) -> bool:
        """Whether the method reads data."""
        return self.method in CALIBRATED

    def contract(self, upcycled: MoteConfig | None, where: str, *, every_layer: bool = True) -> MoteConfig:
        """As in packing; a shared expert that was trained on a grid is on it already, and stays."""
        there = upcycled is None or upcycled.shared_expert or not every_layer
        trained = "none" if upcycled is None else upcycled.shared.quantizer
        if self.shared == AUTO:
            shared: Storage = "int4" if there and trained == "none" else "none"
        elif self.shared != "none" and self.shared == trained:
            shared = "none"
        else:
            return super().contract(upcycled, where, every_layer=every_layer)
        return replace(self, shared=shared).contract(upcycled, where, every_layer=every_layer)

    def format(self, storage: Storage) -> WeightFormat:
        """The number format of one class of matrices: that of `pack`, with scales that the method gives."""
        fmt = super().format(storage)
        return fmt if fmt == FULL_PRECISION or self.method == "rtn" else replace(fmt, scale="given")
