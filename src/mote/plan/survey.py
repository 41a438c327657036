"""Everything that `mote plan` tells: the plan as asked for, devices, and with a budget what is worth it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mote.checkpoint.accounting import GIB
from mote.errors import PlanError
from mote.plan.budget import Found, Space, budget_bytes, search
from mote.plan.choice import Choice
from mote.plan.devices import Device, device
from mote.plan.measure import KINDS, On, Plan, Use, measure
from mote.plan.peers import Peer, peers
from mote.plan.skeleton import Skeleton
from mote.plan.studies import Measured, measured, read_studies

FROM_DEVICE = "device"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The answer to one call. plan: as asked for. found: of the budget, None without one. budget: its bytes, and
    budget_text as it was said. devices: each with the plan as it runs there. accuracies: by the title of a plan or
    peer."""

    skeleton: Skeleton
    use: Use
    plan: Plan
    devices: tuple[tuple[Device, Plan], ...]
    peers: tuple[Peer, ...]
    on: On
    budget: int | None
    budget_text: str
    found: Found | None
    accuracies: dict[str, list[Measured]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: the plan's own keys at the top, `paper_gib` and `file_bytes` among them."""
        skeleton = self.skeleton
        plain: dict[str, Any] = {
            **self.plan.to_dict(),
            "source": skeleton.source,
            "shape": {"H": skeleton.hidden_size, "F": skeleton.ffn_size, "L": skeleton.layers},
            "context": self.use.context,
            "images": self.use.images,
            "image_tokens": skeleton.image_tokens,
            "kv": self.use.kv,
            "devices": [there.to_dict(plan) for there, plan in self.devices],
            "peers": [peer.to_dict() for peer in self.peers],
            "accuracies": {title: [vars(one) for one in found] for title, found in self.accuracies.items()},
        }
        if self.found is not None:
            first = self.devices[0][0]
            plain["budget"] = {
                "bytes": self.budget,
                "on": self.on,
                "searched": self.found.searched,
                "fitting": self.found.fitting,
                "smallest": self.found.smallest.to_dict(),
                "plans": [{**plan.to_dict(), "device": first.to_dict(plan)} for plan in self.found.plans],
            }
        return plain


def survey(
    skeleton: Skeleton,
    asked: Choice,
    use: Use,
    *,
    budget: str | None = None,
    on: str | None = None,
    space: Space | None = None,
    devices: Sequence[str] = ("this",),
    studies: Path = Path("studies"),
) -> Survey:
    """Measures `asked`, its peers, and with a budget ("3.4GiB", or "device" for what the first device has free) the
    plans for it. Raises PlanError or FormatError as `measure`, `search` and `device` do."""
    there, space = [device(name) for name in devices], space or Space()
    use = replace(use, bf16=there[0].bf16).check(skeleton)
    kind = on or ("resident" if budget == FROM_DEVICE else "paper")
    if kind not in KINDS:
        raise PlanError(f"plan: on={kind!r} is unknown; use one of {', '.join(KINDS)}")
    counted: On = kind
    limit = None if budget is None else there[0].free if budget == FROM_DEVICE else budget_bytes(budget, counted)
    plan = measure(skeleton, asked, use)
    found = None
    if limit is not None:
        if asked.kind != "mote" or asked.experts_format != "ternary":
            raise PlanError("budget: searches MoTE with ternary experts; drop --kind and --experts-format")
        said = "" if budget is None or budget == FROM_DEVICE else budget
        found = search(skeleton, limit, counted, asked, space, use, said=said.strip())
    beside = peers(skeleton, limit, counted, asked, use, space)
    reports = read_studies(studies)
    plans = [plan, *(found.plans if found else ()), *(peer.plan for peer in beside)]
    accuracies = {one.choice.title(): measured(skeleton, one, reports) for one in plans if one.model == skeleton.name}
    return Survey(
        skeleton=skeleton,
        use=use,
        plan=plan,
        devices=tuple((one, measure(skeleton, asked, replace(use, bf16=one.bf16))) for one in there),
        peers=tuple(beside),
        on=counted,
        budget=limit,
        budget_text=budget_text(budget, limit, counted),
        found=found,
        accuracies={title: scores for title, scores in accuracies.items() if scores},
    )


def budget_text(said: str | None, limit: int | None, on: On) -> str:
    """The budget as it was said, and how far it goes where that is not the same."""
    if said is None or limit is None:
        return ""
    size = said.strip()
    if said == FROM_DEVICE:
        return f"{gib(limit)} GiB"
    return f"{size} (prints as it up to {limit / GIB:.2f} GiB)" if on == "paper" and "." in size else size


def gib(count: float) -> str:
    """Bytes as "3.40"."""
    return f"{count / GIB:.2f}"
