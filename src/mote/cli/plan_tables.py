"""The text of `mote plan`: tables of a survey within 100 columns."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import StringIO

from mote.checkpoint.contract import OUTSIDE
from mote.cli.output import WIDTH
from mote.plan.devices import Device
from mote.plan.measure import On, Plan, count
from mote.plan.survey import Survey, gib

COUNTED: dict[On, str] = {
    "paper": "feed-forward networks in the paper's accounting",
    "ffn": "feed-forward networks as stored",
    "file": "weight files",
    "resident": "memory while it answers",
}
TITLES = {
    "weights": "weights of the language model, mapped",
    "copies": "norms, biases, routers in fp32",
    "pictures": "vision tower, connector, pictures",
    "working": "activations of one call",
    "libraries": "interpreter and libraries",
}
FITS = {
    "yes": "yes",
    "mapped": "slowly: weights are read from disk again and again",
    "no": "no: what is not weights does not fit",
}
SHORT = {"yes": "yes", "mapped": "slow", "no": "no"}


def lines(survey: Survey, *, rows: int) -> list[str]:
    """All of it."""
    skeleton = survey.skeleton
    shape = f"H {skeleton.hidden_size}, F {skeleton.ffn_size}, {skeleton.layers} layers"
    head = [f"{skeleton.name}: {shape}; from {skeleton.source}"]
    if survey.use.images and not skeleton.image_tokens:
        head.append("its config does not say how many tokens a picture takes: none are counted; say --image-size")
    if survey.found is not None:
        return [*head, *_budget(survey, rows), "", *_peers(survey), *_accuracies(survey, survey.found.plans[:rows])]
    return [
        *head,
        f"plan: {survey.plan.choice.title()}, {survey.plan.choice.top_k or 'no'} routed experts a token"
        if survey.plan.choice.experts
        else f"plan: {survey.plan.choice.title()}",
        "",
        *_plan(survey),
        "",
        *_devices(survey.devices),
        "",
        *_peers(survey),
        *_accuracies(survey, [survey.plan]),
    ]


def _plan(survey: Survey) -> list[str]:
    plan, use = survey.plan, survey.use
    parts = [(name.replace("_", " "), size) for name, size in plan.components.items() if size]
    stored = _table(
        ("on disk", "bytes", "GiB"),
        [*((name, *_both(size)) for name, size in parts), ("weight files", *_both(plan.file_bytes))],
    )
    tokens = use.images * survey.skeleton.image_tokens
    titles = {
        **TITLES,
        "cache": f"keys and values, {use.context:,} tokens" + (f", {tokens:,} pictures'" * bool(tokens)),
    }
    counts = plan.resident.to_dict()
    memory = _table(
        ("in memory", "bytes", "GiB"),
        [
            *((titles[name], *_both(counts[name])) for name in titles if counts[name]),
            ("all; the system can drop and read again the first", *_both(plan.resident.total)),
        ],
    )
    paper = [
        f"feed-forward networks: {plan.paper_gib:.2f} GiB in the paper's accounting (weights alone), "
        f"{gib(plan.ffn_bytes)} as stored",
        f"a token reads {gib(plan.token_bytes)} GiB and meets weights of {plan.token_bits:.2f} bits in the mean",
    ]
    return [*stored, "", *memory, "", *paper]


def _budget(survey: Survey, rows: int) -> list[str]:
    found = survey.found
    assert found is not None
    shown = found.plans[:rows]
    table = _table(
        ("experts", "shared", "attention", "head", "2bit", "paper", "ffn", "file", "memory", "bits a token", "fits"),
        [_plan_row(survey, plan) for plan in shown],
        right=4,
    )
    left = len(found.plans) - len(shown)
    more = f"; {left} more with --rows" if left else ""
    there = survey.devices[0][0]
    return [
        f"budget: {survey.budget_text} of {COUNTED[survey.on]}",
        f"{found.fitting} of {found.searched} choices fit it, {len(found.plans)} are worth it{more}",
        "",
        *table,
        "GiB. Worth it: no other that fits has as many experts, as many bits of each part, and more of one.",
        "Ordered by the mean bits of the weights that a token meets, which is precision, not accuracy.",
        "2bit: whether the faster codec, with the same numbers, is within the budget too.",
        f"fits: in the {gib(there.free)} GiB that {there.name} has free; slow: weights are read again and again.",
    ]


def _plan_row(survey: Survey, plan: Plan) -> tuple[str, ...]:
    choice = plan.choice
    storages = (choice.shared, choice.attention, choice.head)
    names = ("BF16" if name == "none" else name.upper() for name in storages)
    return (
        str(choice.experts),
        *names,
        _faster(survey, plan),
        f"{plan.paper_gib:.2f}",
        *(gib(size) for size in (plan.ffn_bytes, plan.file_bytes, plan.resident.total)),
        f"{plan.token_bits:.2f}",
        SHORT[survey.devices[0][0].fits(plan)],
    )


def _faster(survey: Survey, plan: Plan) -> str:
    """Whether the plan fits with 2 bits in the place of 1.6."""
    assert survey.budget is not None
    if plan.choice.codec != "base3":
        return "this"
    other = replace(plan.choice, codec="2bit")
    return "yes" if count(survey.skeleton, other, survey.on, survey.use) <= survey.budget else "-"


def _peers(survey: Survey) -> list[str]:
    budget, rows = survey.budget, []
    for peer in survey.peers:
        plan = peer.plan
        sizes = [gib(size) for size in (plan.ffn_bytes, plan.file_bytes, plan.resident.total)]
        fits = [] if budget is None else ["yes" if plan.bytes(survey.on) <= budget else "no"]
        title = f"{peer.title}{_rest(plan)}"
        rows.append((title, f"{plan.paper_gib:.2f}", *sizes, f"{plan.token_bits:.2f}", *fits))
    title = "the same bytes otherwise" if budget is not None else "beside it"
    header = (title, "paper", "ffn", "file", "memory", "bits a token", *([] if budget is None else ["within"]))
    return _table(header, rows)


def _rest(plan: Plan) -> str:
    parts = [(name, getattr(plan.choice, name)) for name in OUTSIDE]
    said = ", ".join(f"{name} {value.upper()}" for name, value in parts if value != "none")
    return f"; {said}" if said else ""


def _devices(devices: Iterable[tuple[Device, Plan]]) -> list[str]:
    found = list(devices)
    rows = [
        (
            there.name,
            gib(there.memory),
            gib(there.free),
            gib(plan.resident.total),
            f"{there.bound(plan):.1f}" if there.bandwidth else "?",
            FITS[there.fits(plan)],
        )
        for there, plan in found
    ]
    table = _table(("device", "memory", "free", "needed", "tokens/s below", "fits"), rows, last_left=True)
    notes = [f"{there.name}: {there.note}" for there, _ in found]
    bound = "tokens/s below: read bandwidth over what a token reads when the context is full; not a forecast."
    return [*table, bound, *notes]


def _accuracies(survey: Survey, plans: Iterable[Plan]) -> list[str]:
    """What was measured of these plans and of the peers."""
    beside = (peer.plan for peer in survey.peers if peer.plan.model == survey.skeleton.name)
    titles = dict.fromkeys(plan.choice.title() for plan in (*plans, *beside))
    rows = [
        (
            title,
            f"{100 * one.value:.1f}",
            f"{100 * one.low:.1f} to {100 * one.high:.1f}",
            f"{one.n} {one.split}",
            one.method.upper(),
            one.source.removesuffix("/report.json"),
        )
        for title in titles
        for one in survey.accuracies.get(title, ())
    ]
    header = ("measured", "%", "95%", "questions", "method", "study")
    return ["", *_table(header, rows, last_left=True)] if rows else []


def _both(size: int) -> tuple[str, str]:
    return f"{size:,}", gib(size)


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: int = 1, last_left: bool = False
) -> list[str]:
    """A rich table as lines: columns from `right` on flush right, but for the last one if `last_left`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index, title in enumerate(header):
        left = index < right or (last_left and index == len(header) - 1)
        table.add_column(title, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(file=StringIO(), width=WIDTH, color_system=None, legacy_windows=False)
    console.print(table)
    text: StringIO = console.file  # type: ignore[assignment]
    return [line.rstrip() for line in text.getvalue().splitlines() if line.strip()]
