"""What packing does, as settings."""

from dataclasses import dataclass, replace

from mote.checkpoint.contract import CodecName, MoteConfig
from mote.checkpoint.layout import is_packable
from mote.errors import CheckpointError, FormatError
from mote.model.packed import packable


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Settings of `pack`.

    codec: layout of the digits, "base3" (5 in a byte, 1.6 bits a weight) or "2bit" (4 in a byte, a little faster).
    """

    codec: CodecName = "base3"

    def __post_init__(self) -> None:
        if self.codec not in ("base3", "2bit"):
            raise FormatError(f"pack: codec {self.codec!r} is unknown; use 'base3' or '2bit'")

    def contract(self, upcycled: MoteConfig, where: str) -> MoteConfig:
        """The packed checkpoint's `quantization_config`.

        Raises CheckpointError when `where` is packed already, FormatError when its routed experts are on a grid that
        the codecs do not hold.
        """
        if upcycled.state != "upcycled":
            raise CheckpointError(f"{where}: is {upcycled.state} already; pack the up-cycled checkpoint it came from")
        if not packable(upcycled.routed):
            raise FormatError(
                f"{where}: codec {self.codec} cannot hold {upcycled.routed.quantizer} experts with "
                f"{upcycled.routed.activation} activations; up-cycle with ternary or binary weights and int8 "
                "activations"
            )
        if is_packable(upcycled.shared) and not packable(upcycled.shared):
            raise FormatError(
                f"{where}: codec {self.codec} cannot hold a {upcycled.shared.quantizer} shared expert without int8 "
                "activations; up-cycle with activation 'int8'"
            )
        return replace(upcycled, state="packed", codec=self.codec)
