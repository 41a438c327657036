"""What the budget comparison compares: families of models, the widths that they are quantised to, and their bits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

GROUP = 64
BITS = {"none": 16.0, "int8": 8.0, "int6": 6.0, "int4": 4.0, "int3": 3.0, "int2": 2.0}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is trained. experts: of MoE-LLaVA, 0 for none. part: what is quantised after training.

    fixed, copies: bits a weight of the dense network that stay as they are, and how many copies of it are quantised.
    """

    title: str
    part: str
    copies: int
    fixed: float = 0.0
    experts: int = 0


FAMILIES = {
    "mote": Family(title="MoTE: shared + 4 ternary", part="shared", copies=1, fixed=4 * 1.6),
    "moe4": Family(title="MoE-LLaVA, 4 experts", part="experts", copies=4, experts=4),
    "moe3": Family(title="MoE-LLaVA, 3 experts", part="experts", copies=3, experts=3),
    "moe2": Family(title="MoE-LLaVA, 2 experts", part="experts", copies=2, experts=2),
    "dense": Family(title="dense", part="shared", copies=1),
}
VARIANTS = {
    "mote": ("none", "int8", "int4", "int3", "int2"),
    "moe4": ("none", "int8", "int6", "int4", "int3", "int2"),
    "moe3": ("int8", "int4", "int3"),
    "moe2": ("none", "int8", "int6", "int4"),
    "dense": ("none", "int8", "int4", "int3", "int2"),
}


def nominal_bits(family: str, width: str) -> float:
    """Bits per weight of the dense network, all copies together, in the paper's accounting: no scales, no routers."""
    f = FAMILIES[family]
    return f.fixed + f.copies * BITS[width]


def sixteenths(family: str, width: str) -> float:
    """The same in sixteenths of MoE-LLaVA's four experts in BF16."""
    return 16 * nominal_bits(family, width) / (4 * BITS["none"])


def choice(family: str, width: str) -> dict[str, Any]:
    """The same in the words of `mote plan` (`mote.plan.choice.Choice`)."""
    stored = {"group": GROUP, "symmetric": width == "none"}
    if experts := FAMILIES[family].experts:
        return {"kind": "moe-llava", "experts": experts, "experts_format": width, **stored}
    return {"kind": family, "experts": 4 if family == "mote" else 0, "shared": width, **stored}


def variants(families: Sequence[str], widths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(family, width) of each variant that was asked for."""
    return ((name, width) for name in families for width in VARIANTS[name] if width in widths)
