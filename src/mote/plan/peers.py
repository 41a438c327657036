"""What else the same bytes buy: the paper's baseline in fewer bits or with fewer experts, and dense models."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mote.errors import FormatError, PlanError
from mote.plan import known
from mote.plan.budget import Space, table
from mote.plan.choice import Choice
from mote.plan.measure import On, Plan, Use, measure
from mote.plan.skeleton import Skeleton, of_config
from mote.plan.tensors import shapes

BASELINES: tuple[tuple[str, int, str], ...] = (
    ("MoE-LLaVA, 4 experts INT3", 4, "int3"),
    ("3 experts INT4", 3, "int4"),
    ("3 experts INT8", 3, "int8"),
    ("2 experts BF16", 2, "none"),
)
"""MoE-LLaVA's block (no shared expert, two experts a token): title, experts, their format."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """title: of a row. plan: its bytes."""

    title: str
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**self.plan.to_dict(), "peer": self.title}


def peers(
    skeleton: Skeleton, budget: int | None, on: On, fixed: Choice, use: Use, space: Space | None = None
) -> list[Peer]:
    """The paper's own plan, the baselines, the dense model itself in BF16 and INT4, and the largest known dense model
    of its family that fits `budget` in INT4 (without a budget: the next larger one).

    Attention and head are stored as `fixed` has them, or as wide as `space` and a budget that counts them allow.
    """
    space = space or Space()
    paper = replace(fixed, kind="mote", experts=4, experts_format="ternary", codec="2bit", shared="int4")
    choices = [("the paper's MoTE, 4 x 2 bit + INT4", paper)]
    choices += [(title, _baseline(fixed, experts, storage)) for title, experts, storage in BASELINES]
    dense = replace(fixed, kind="dense", experts=0, shared="int4", layers=())
    choices += [("dense BF16", replace(dense, shared="none")), ("dense INT4", dense)]
    found = []
    for title, choice in choices:
        try:
            plan = measure(skeleton, _fitted(skeleton, choice, budget, on, space, use), use)
        except FormatError:  # sizes that a format does not hold
            continue
        found.append(Peer(title=title, plan=plan))
    bigger = _bigger(skeleton, budget, on, dense, space, use)
    return found if bigger is None else [*found, bigger]


def _fitted(skeleton: Skeleton, choice: Choice, budget: int | None, on: On, space: Space, use: Use) -> Choice:
    """The peer with the widest attention and head that fit a budget on the file or on memory, as the plans beside it
    may choose theirs; the smallest ones where nothing fits."""
    if budget is None or on in ("paper", "ffn"):
        return choice
    space = replace(space, experts=(choice.experts,), codecs=(choice.codec,), shared=(choice.shared,))
    rows = sorted(table(skeleton, on, choice, space, use), key=lambda row: row[0])
    return next((option for size, option in reversed(rows) if size <= budget), rows[0][1] if rows else choice)


def _baseline(fixed: Choice, experts: int, storage: str) -> Choice:
    dense = storage if fixed.layers else "none"  # the layers without a mixture
    return replace(fixed, kind="moe-llava", experts=experts, experts_format=storage, shared=dense)


def _bigger(skeleton: Skeleton, budget: int | None, on: On, choice: Choice, space: Space, use: Use) -> Peer | None:
    """A dense model of the same family with more feed-forward weights, from the table of known models, behind the same
    vision tower; none where no table knows that."""
    weights = skeleton.hidden_size * skeleton.ffn_size * skeleton.layers
    candidates = []
    for name, row in known.table("models").items():
        more = row["hidden_size"] * row["intermediate_size"] * row["num_hidden_layers"]
        if row["model_type"] == skeleton.model_type and more > weights and name.split("-")[0] in _family(skeleton):
            candidates.append((more, name))
    best: Peer | None = None
    for _, name in sorted(candidates):
        config = _behind_the_same_eyes(known.model_config(name, "none"), skeleton)
        if shapes(config) is None:
            continue
        try:
            other = replace(of_config(config, name, "the table of known models"), image_tokens=skeleton.image_tokens)
            plan = measure(other, _fitted(other, choice, budget, on, space, use), use)
        except (FormatError, PlanError):
            continue
        if best is not None and plan.bytes(on) > (budget or 0):
            break  # so will the larger ones
        if best is None or budget is not None:
            best = Peer(title=f"{name} dense INT4", plan=plan)
    return best


def _behind_the_same_eyes(text: Mapping[str, Any], skeleton: Skeleton) -> Mapping[str, Any]:
    """The config of a language model in the place of the one in `skeleton`."""
    if not skeleton.eyes:
        return text
    tied = text.get("tie_word_embeddings", False)
    own = {key: value for key, value in skeleton.config.items() if key not in ("dtype", "torch_dtype")}
    return {**own, "text_config": text, "tie_word_embeddings": tied}


def _family(skeleton: Skeleton) -> set[str]:
    """First words of known names that a model may be compared with: its own, or any of its kind if it has none."""
    own = skeleton.name.split("-")[0]
    names = {name.split("-")[0] for name in known.table("models")}
    return {own} if own in names else names
