"""What packing does, as settings."""

from dataclasses import dataclass, replace
from typing import Literal

from mote.checkpoint.contract import CodecName, MoteConfig, integer_codec
from mote.checkpoint.layout import is_ternary
from mote.errors import CheckpointError, FormatError
from mote.model.packed import packable
from mote.ternary.format import FULL_PRECISION, WeightFormat

Storage = Literal["none", "int4", "int8"]
GROUPS = (32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Settings of `pack`.

    codec: layout of the digits, "base3" (5 in a byte, 1.6 bits a weight) or "2bit" (4 in a byte, a little faster).
    shared, attention, head: storage of the shared experts (with the feed-forward networks of layers without a mixture),
        of the projections q, k, v, o, and of the language model's head: "none" as they are, "int4" or "int8" rounded to
        nearest. A head that is tied to the embedding becomes one table for both; otherwise the embedding stays.
    group: inputs per scale of int4 and int8: 32, 64 or 128.
    """

    codec: CodecName = "base3"
    shared: Storage = "none"
    attention: Storage = "none"
    head: Storage = "none"
    group: int = 64

    def __post_init__(self) -> None:
        if self.codec not in ("base3", "2bit"):
            raise FormatError(f"pack: codec {self.codec!r} is unknown; use 'base3' or '2bit'")
        for name in ("shared", "attention", "head"):
            if getattr(self, name) not in ("none", "int4", "int8"):
                raise FormatError(f"pack: {name}={getattr(self, name)!r} is unknown; use 'none', 'int4' or 'int8'")
        if self.group not in GROUPS:
            raise FormatError(f"pack: group={self.group!r} is not one of {', '.join(map(str, GROUPS))}")

    @property
    def quantizes(self) -> bool:
        """Whether anything but routed experts is asked for, which a dense model has too."""
        return any(name != "none" for name in (self.shared, self.attention, self.head))

    def format(self, storage: Storage) -> WeightFormat:
        """The number format of one class of matrices."""
        if storage == "none":
            return FULL_PRECISION
        return WeightFormat(
            quantizer=storage, scale="absmax", granularity="group", group=self.group, activation="int8_group"
        )

    def contract(self, upcycled: MoteConfig | None, where: str, *, every_layer: bool = True) -> MoteConfig:
        """The packed checkpoint's `quantization_config`, sizes aside.

        upcycled: that of the source, None for a dense one. every_layer: whether every layer holds a mixture. Raises
        CheckpointError when `where` is packed already, or dense with nothing to pack, FormatError when its experts are
        on a grid that the codecs do not hold or the shared expert was trained on another than the one asked for.
        """
        attention, head = self.format(self.attention), self.format(self.head)
        if upcycled is None:
            if not self.quantizes:
                raise CheckpointError(
                    f"{where}: is dense; up-cycle (and train) it before packing, or say what to quantise (shared, "
                    "attention, head)"
                )
            shared = self.format(self.shared)
            return MoteConfig(
                state="packed",
                num_experts=0,
                top_k=0,
                routed=FULL_PRECISION,
                shared=shared,
                attention=attention,
                head=head,
            )
        if upcycled.state != "upcycled":
            raise CheckpointError(f"{where}: is {upcycled.state} already; pack the up-cycled checkpoint it came from")
        if not packable(upcycled.routed):
            raise FormatError(
                f"{where}: codec {self.codec} cannot hold {upcycled.routed.quantizer} experts with "
                f"{upcycled.routed.activation} activations; up-cycle with ternary or binary weights and int8 "
                "activations"
            )
        if is_ternary(upcycled.shared) and not packable(upcycled.shared):
            raise FormatError(
                f"{where}: codec {self.codec} cannot hold a {upcycled.shared.quantizer} shared expert without int8 "
                "activations; up-cycle with activation 'int8'"
            )
        shared = self._shared(upcycled.shared, where, every_layer=every_layer)
        return replace(upcycled, state="packed", codec=self.codec, shared=shared, attention=attention, head=head)

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
