"""What can be chosen about a model, and the contract of the checkpoint that the choice makes.

The names are those of `mote upcycle` and `mote pack`; tests hold the contracts to what these two write.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, cast, get_args

from mote.checkpoint.accounting import BF16_BITS
from mote.checkpoint.contract import OUTSIDE, CodecName, MoteConfig
from mote.errors import FormatError, PlanError
from mote.ternary.format import FULL_PRECISION, GROUPS, Storage, WeightFormat, stored_format

Kind = Literal["mote", "moe-llava", "dense"]
STORAGES: tuple[str, ...] = get_args(Storage)
"""Storages by name, as `mote pack --shared` takes them: "none" is as it is, 16 bits."""
CODECS: tuple[CodecName, ...] = get_args(CodecName)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to make a checkpoint of a dense model.

    kind: "mote" (shared expert beside routed ones, top 1), "moe-llava" (routed experts only, top 2) or "dense".
    experts: routed experts of each layer; 0 of a dense model. experts_format: their grid, "ternary" in `codec`, or a
    storage. shared: storage of the shared experts, or of a dense model's networks. attention, head, tower: of q, k, v,
    o, of the language model's head, and of the matrices in the vision tower's layers. group: inputs per scale of the
    integers. symmetric: whether their grids are; otherwise each group has a zero point as well. layers: that hold a
    mixture; empty for all.
    """

    kind: Kind = "mote"
    experts: int = 4
    experts_format: str = "ternary"
    codec: CodecName = "base3"
    shared: str = "none"
    attention: str = "none"
    head: str = "none"
    tower: str = "none"
    group: int = 64
    symmetric: bool = True
    layers: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        for name, allowed in (
            ("kind", get_args(Kind)),
            ("experts_format", ("ternary", *STORAGES)),
            ("codec", CODECS),
            ("shared", STORAGES),
            *((name, STORAGES) for name in OUTSIDE),
            ("group", GROUPS),
        ):
            if getattr(self, name) not in allowed:
                shown = ", ".join(map(str, allowed))
                raise FormatError(f"plan: {name}={getattr(self, name)!r} is unknown; use one of {shown}")
        if (self.kind == "dense") != (self.experts == 0):
            raise PlanError(f"plan: {self.experts} experts in a model of kind {self.kind}; a dense one has 0")
        if self.kind == "moe-llava" and self.shared != "none" and not self.layers:
            raise PlanError(f"plan: shared={self.shared}, but MoE-LLaVA has no shared experts; leave it out")
        if self.experts > 4096 or self.experts < 0:
            raise PlanError(f"plan: {self.experts} experts; use 1 to 4096")

    @property
    def top_k(self) -> int:
        """Experts of a token: 1 of MoTE's, 2 of MoE-LLaVA's."""
        return min(2 if self.kind == "moe-llava" else 1, self.experts)

    @property
    def packed(self) -> bool:
        """Whether anything is stored in another form than the dense model's."""
        routed = self.kind != "dense" and self.experts_format != "none"
        return routed or any(getattr(self, name) != "none" for name in ("shared", *OUTSIDE))

    @property
    def has_integers(self) -> bool:
        """Whether integers with a scale per group are stored."""
        routed = self.kind != "dense" and self.experts_format in STORAGES[1:]
        return routed or any(getattr(self, name) != "none" for name in ("shared", *OUTSIDE))

    def contract(self, num_layers: int) -> MoteConfig | None:
        """The `quantization_config`, sizes aside, for a model of so many layers; None for a dense one as it is.

        Raises FormatError for what no checkpoint holds.
        """
        if not self.packed and self.kind == "dense":
            return None
        others: dict[str, Any] = {name: self._format(getattr(self, name)) for name in OUTSIDE}
        if self.kind == "dense":
            return MoteConfig(
                state="packed",
                num_experts=0,
                top_k=0,
                routed=FULL_PRECISION,
                shared=self._format(self.shared),
                **others,
            )
        routed = WeightFormat() if self.experts_format == "ternary" else self._format(self.experts_format)
        layers = self.layers or tuple(range(num_layers))
        baseline = self.kind == "moe-llava"
        return MoteConfig(
            state="packed" if self.packed else "upcycled",
            layers=layers,
            num_experts=self.experts,
            top_k=self.top_k,
            normalize_gates=baseline and self.top_k > 1,
            shared_expert=not baseline,
            routed=routed,
            shared=FULL_PRECISION if baseline and len(layers) == num_layers else self._format(self.shared),
            codec=self.codec if self.packed and self.experts_format == "ternary" else None,
            **others,
        )

    def _format(self, storage: str) -> WeightFormat:
        return stored_format(cast(Storage, storage), self.group, symmetric=self.symmetric)

    def title(self) -> str:
        """ "4 x 1.6 bit + shared int4", in the words of the tables; what differs from the usual way comes last."""
        rest = "".join(f", {name} {value}" for name in OUTSIDE if (value := getattr(self, name)) != "none")
        if self.has_integers:
            rest += f", group {self.group}" * (self.group != 64) + ", zero points" * (not self.symmetric)
        rest += f", in {len(self.layers)} layers" * bool(self.layers)
        if self.kind == "dense":
            return f"dense {storage_title(self.shared)}{rest}"
        routed = {"base3": "1.6 bit", "2bit": "2 bit"}[self.codec]
        if self.experts_format != "ternary":
            routed = storage_title(self.experts_format)
        if self.kind == "moe-llava":
            dense = f" + dense layers {storage_title(self.shared)}" * bool(self.layers)
            return f"{self.experts} x {routed}{dense}{rest}"
        return f"{self.experts} x {routed} + shared {storage_title(self.shared)}{rest}"


def storage_title(storage: str) -> str:
    """ "BF16" for what stays as it is, "INT4" for "int4"."""
    return "BF16" if storage == "none" else storage.upper()


def storage_bits(storage: str) -> Fraction:
    """Bits a weight of a storage, scales aside; 16 of "none"."""
    return BF16_BITS if storage == "none" else Fraction(int(storage.removeprefix("int")))
