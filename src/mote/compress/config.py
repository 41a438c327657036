"""What packing does, as settings."""

from dataclasses import dataclass, replace
from typing import Any, get_args

from mote.checkpoint.contract import OUTSIDE, CodecName, MoteConfig
from mote.checkpoint.layout import is_ternary
from mote.errors import CheckpointError, FormatError
from mote.model.packed import packable
from mote.ternary.format import FULL_PRECISION, GROUPS, Storage, WeightFormat, integer_codec, stored_format

PARTS = ("shared", *OUTSIDE, "experts")
"""Settings that are storages of a class of matrices."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Settings of `pack`.

    codec: layout of ternary digits, "base3" (5 in a byte, 1.6 bits a weight) or "2bit" (4 in a byte, a little faster).
    shared, attention, head: storage of the shared experts (with the feed-forward networks of layers without a mixture),
        of the projections q, k, v, o, and of the language model's head: "none" as they are, or rounded to the nearest
        integer of 2 to 8 bits. A head that is tied to the embedding becomes one table for both; otherwise the embedding
        stays.
    tower: storage of the matrices in the vision tower's layers, likewise. int8 also makes it faster on a CPU.
    experts: storage of routed experts that were trained in full precision, likewise; "none": on the grid of their
        training, or as floats where that is none and something else is asked for.
    group: inputs per scale of the integers: 32, 64 or 128.
    symmetric: whether the integers' grids are symmetric; otherwise each group has a zero point as well.
    """

    codec: CodecName = "base3"
    shared: Storage = "none"
    attention: Storage = "none"
    head: Storage = "none"
    tower: Storage = "none"
    experts: Storage = "none"
    group: int = 64
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.codec not in ("base3", "2bit"):
            raise FormatError(f"pack: codec {self.codec!r} is unknown; use 'base3' or '2bit'")
        for name in PARTS:
            if getattr(self, name) not in (allowed := self.allowed(name)):
                known = ", ".join(map(repr, allowed))
                raise FormatError(f"pack: {name}={getattr(self, name)!r} is unknown; use one of {known}")
        if self.group not in GROUPS:
            raise FormatError(f"pack: group={self.group!r} is not one of {', '.join(map(str, GROUPS))}")

    def allowed(self, name: str) -> tuple[str, ...]:
        """Values of the setting `name`, one of `PARTS`."""
        return get_args(Storage)

    @property
    def quantizes(self) -> bool:
        """Whether anything is asked for that is not quantised in training."""
        return any(getattr(self, name) != "none" for name in PARTS)

    def format(self, storage: Storage) -> WeightFormat:
        """The number format of one class of matrices."""
        return stored_format(storage, self.group, symmetric=self.symmetric)

    def contract(self, upcycled: MoteConfig | None, where: str, *, every_layer: bool = True) -> MoteConfig:
        """The packed checkpoint's `quantization_config`, sizes aside.

        upcycled: that of the source, None for a dense one. every_layer: whether every layer holds a mixture. Raises
        CheckpointError when `where` is packed already, or dense with nothing to pack, FormatError when its experts are
        on a grid that the codecs do not hold or the shared expert was trained on another than the one asked for.
        """
        others: dict[str, Any] = {name: self.format(getattr(self, name)) for name in OUTSIDE}
        # Calibration does not see the tower, whatever the method.
        others["tower"] = PackConfig.format(self, self.tower)
        if upcycled is None:
            if not self.quantizes:
                raise CheckpointError(
                    f"{where}: is dense; up-cycle (and train) it before packing, or say what to quantise (shared, "
                    "attention, head, tower)"
                )
            if self.experts != "none":
                raise FormatError(f"{where}: is dense, it has no routed experts; say shared={self.experts} instead")
            shared = self.format(self.shared)
            return MoteConfig(
                state="packed",
                num_experts=0,
                top_k=0,
                routed=FULL_PRECISION,
                shared=shared,
                **others,
            )
        if upcycled.state != "upcycled":
            raise CheckpointError(f"{where}: is {upcycled.state} already; pack the up-cycled checkpoint it came from")
        routed = self._routed(upcycled, where)
        if is_ternary(upcycled.shared) and not packable(upcycled.shared):
            raise FormatError(
                f"{where}: codec {self.codec} cannot hold a {upcycled.shared.quantizer} shared expert without int8 "
                "activations; up-cycle with activation 'int8'"
            )
        if not upcycled.shared_expert and every_layer and self.shared != "none":
            raise FormatError(f"{where}: has no shared experts; say experts={self.shared} instead of shared")
        shared = self._shared(upcycled.shared, where, every_layer=every_layer)
        codec = self.codec if is_ternary(routed) or is_ternary(shared) else None
        return replace(upcycled, state="packed", codec=codec, routed=routed, shared=shared, **others)

    def _routed(self, upcycled: MoteConfig, where: str) -> WeightFormat:
        """Format of the routed experts: the grid of their training, else as asked for, else floats."""
        trained = upcycled.routed
        if self.experts != "none":
            asked = self.format(self.experts)
            if trained.quantizer != "none" and asked != trained:
                raise FormatError(
                    f"{where}: the routed experts were trained as {trained.quantizer}; leave experts as they are, or "
                    "up-cycle with full-precision ones"
                )
            return asked
        if trained.quantizer == "none" and self.quantizes and upcycled.combine != "gated":
            return trained
        if not packable(trained):
            raise FormatError(
                f"{where}: codec {self.codec} cannot hold {trained.quantizer} experts with {trained.activation} "
                "activations; up-cycle with ternary or binary weights and int8 activations, or say experts=int4"
            )
        return trained

    def _shared(self, trained: WeightFormat, where: str, *, every_layer: bool) -> WeightFormat:
        """Format of the shared expert: as asked for, else the grid of its training, in a codec where one fits."""
        asked = self.format(self.shared)
        if trained.quantizer == "none":
            return asked
        stored = replace(trained, activation="int8_group") if trained.granularity == "group" else trained
        if asked == FULL_PRECISION:
            # A dense layer's network beside it was not trained on the grid, and `shared` would be its format too.
            if integer_codec(trained) and not every_layer:
                raise FormatError(
                    f"{where}: the shared expert was trained as {trained.quantizer}, and layers without a mixture were "
                    f"not; say shared={trained.quantizer} to have their networks packed as well"
                )
            fits = integer_codec(stored) is not None and stored.group in GROUPS and every_layer
            return stored if fits else trained
        if asked != stored:
            raise FormatError(
                f"{where}: the shared expert was trained as {trained.quantizer}, {trained.scale} per "
                f"{trained.group or trained.granularity}; leave shared as it is, or up-cycle with a full-precision one"
            )
        return asked
