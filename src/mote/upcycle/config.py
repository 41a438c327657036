"""What up-cycling does to a model, as settings; MoTE and MoE-LLaVA are two settings of one block."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mote.checkpoint.contract import Combine, MoteConfig
from mote.errors import RecipeError
from mote.ternary.format import FULL_PRECISION, WeightFormat

Placement = Literal["dense", "sparse", "first_half", "second_half", "explicit"]
Initialise = Literal["ffn", "random", "zero"]


@dataclass(frozen=True, kw_only=True)
class UpcycleConfig:
    """Settings of `upcycle`; the defaults are the paper's MoTE.

    placement: which layers get a mixture: "dense" all, "sparse" every second, "first_half", "second_half", or the
        indices in `layers` ("explicit").
    num_experts, top_k, normalize_gates, shared_expert, train_shared, combine, routed, shared, balance_coefficient: as
        in `MoteConfig`.
    initialise: routed experts are copies of the layer's network ("ffn"), normal with standard deviation 0.02
        ("random"), or copies whose down projection is zero ("zero": three zero matrices would have zero gradient).
    initialise_from: directory of another dense checkpoint of the same shape whose networks are copied instead; empty
        for the model's own.
    seed: of the routers and of "random".
    """

    placement: Placement = "dense"
    layers: tuple[int, ...] = ()
    num_experts: int = 4
    top_k: int = 1
    normalize_gates: bool = False
    shared_expert: bool = True
    train_shared: bool = False
    combine: Combine = "add"
    routed: WeightFormat = field(default_factory=WeightFormat)
    shared: WeightFormat = FULL_PRECISION
    balance_coefficient: float = 0.01
    initialise: Initialise = "ffn"
    initialise_from: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.placement == "explicit") != bool(self.layers):
            raise RecipeError(
                f"upcycle: layers={list(self.layers)} with placement={self.placement!r}; layer indices go "
                "with "
                "placement 'explicit' and with nothing else"
            )
        if self.initialise not in ("ffn", "random", "zero"):
            raise RecipeError(f"upcycle: initialise={self.initialise!r} is unknown; use 'ffn', 'random' or 'zero'")
        if self.initialise == "random" and self.initialise_from:
            raise RecipeError("upcycle: initialise='random' copies nothing; leave initialise_from empty")
        self.contract((0,), 1, 1)

    def contract(self, layers: tuple[int, ...], hidden_size: int, ffn_size: int) -> MoteConfig:
        """The checkpoint's `quantization_config` for a model of this shape."""
        return MoteConfig(
            state="upcycled",
            layers=layers,
            num_experts=self.num_experts,
            top_k=self.top_k,
            normalize_gates=self.normalize_gates,
            shared_expert=self.shared_expert,
            train_shared=self.train_shared,
            combine=self.combine,
            routed=self.routed,
            shared=self.shared,
            balance_coefficient=self.balance_coefficient,
            hidden_size=hidden_size,
            ffn_size=ffn_size,
        )


PRESETS: dict[str, UpcycleConfig] = {
    "mote": UpcycleConfig(),
    "moe-llava": UpcycleConfig(
        num_experts=4, top_k=2, normalize_gates=True, shared_expert=False, routed=FULL_PRECISION
    ),
}


def preset(name: str, **changes: Any) -> UpcycleConfig:
    """A preset by name, with some fields changed. Raises RecipeError for an unknown name or field."""
    if name not in PRESETS:
        raise RecipeError(f"upcycle: preset {name!r} is unknown; use one of {', '.join(PRESETS)}")
    try:
        return replace(PRESETS[name], **changes)
    except TypeError as error:
        raise RecipeError(f"upcycle: {error}") from None
