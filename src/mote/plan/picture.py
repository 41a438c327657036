"""The picture of a survey, `mote plan --plot`: bytes against the bits of what a token meets, and where the bytes go."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from mote.checkpoint.accounting import GIB
from mote.errors import PlanError
from mote.plan.choice import STORAGES, storage_bits, storage_title
from mote.plan.measure import Plan, measure
from mote.plan.survey import Survey

INK = "#7d8590"
"""Grey that is legible on light and dark pages."""
MARKERS = {1: "o", 4: "s", 16: "^", 64: "D"}
"""Of numbers of experts."""
LINE = "#8250df"
"""Unlike the parts' colours below."""
PEER = "#d55e00"
# Okabe and Ito's colours, told apart by all.
PARTS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("shared experts or dense networks", ("shared_experts", "dense_ffn"), "#0072b2"),
    ("routed experts", ("routed_experts",), "#56b4e9"),
    ("scales, routers, norms", ("scales", "routers", "norms", "other"), "#999999"),
    ("attention", ("attention",), "#009e73"),
    ("embedding, head", ("embeddings",), "#f0e442"),
    ("vision tower, connector", ("vision_tower", "connector"), "#cc79a7"),
)
AXES = {
    "paper": "GiB of feed-forward networks, the paper's accounting",
    "ffn": "GiB of feed-forward networks, as stored",
    "file": "GiB of weight files",
    "resident": "GiB of memory while it answers",
}


def draw(survey: Survey, path: Path, *, rows: int = 12) -> None:
    """Writes the picture to `path` (.svg or .png), all or nothing. rows: plans in the lower half.

    Raises PlanError for another ending, or without matplotlib.
    """
    if path.suffix not in (".svg", ".png"):
        raise PlanError(f"{path}: a picture is .svg or .png; change the name")
    try:
        import matplotlib
    except ImportError:
        raise PlanError("plan: --plot needs matplotlib; install it: pip install 'mote-lmm[demo]'") from None
    matplotlib.use("agg")
    from io import BytesIO

    from matplotlib import pyplot

    from mote.checkpoint.atomic import write_file

    style: dict[str, Any] = {"svg.hashsalt": "mote", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK}
    style |= {"xtick.color": INK, "ytick.color": INK, "font.size": 9}
    with pyplot.rc_context(style):
        bars, plans = _bars(survey, rows)
        lower = 0.8 + 0.26 * len(bars)
        figure, (above, below) = pyplot.subplots(
            *(2, 1), figsize=(8.6, 4.6 + lower), height_ratios=(3.8, lower), layout="constrained"
        )
        _scatter(above, survey, bars, plans)
        _stack(below, survey, bars)
        figure.suptitle(f"{survey.skeleton.name}: MoTE with ternary experts, and what else the bytes buy", fontsize=10)
        handles, labels = below.get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=4)
        out = BytesIO()
        # A white ground for PNG, which viewers show on any; SVG is transparent and its ink legible on both.
        figure.savefig(
            out,
            format=path.suffix[1:],
            dpi=150,
            transparent=path.suffix == ".svg",
            metadata={"Date": None} if path.suffix == ".svg" else None,
        )
        pyplot.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, out.getvalue())


def _scatter(axes: Any, survey: Survey, bars: Sequence[tuple[str, Plan]], plans: int) -> None:
    """Bytes against bits a token: a line for each number of experts over the storages of the shared expert, and the
    bars below, the first `plans` of them circled, under their marks."""
    base = replace(survey.plan.choice, kind="mote", experts=4, experts_format="ternary", layers=())
    for experts, marker in MARKERS.items():
        choices = [replace(base, experts=experts, shared=name) for name in sorted(STORAGES, key=storage_bits)]
        line = [measure(survey.skeleton, choice, survey.use) for choice in choices]
        title = f"{experts} expert{'s' * (experts > 1)}"
        axes.plot(*_places(line, survey), f"{marker}-", color=LINE, markersize=4, linewidth=1.2, label=title)
        if experts == min(MARKERS):
            for plan in line:
                _label(axes, plan, survey, f"shared {storage_title(plan.choice.shared)}", (-7, 0), "right")
    marks: dict[tuple[bool, float, float], list[tuple[str, Plan]]] = {}
    for index, (title, plan) in enumerate(bars):
        place = plan.bytes(survey.on) / GIB, plan.token_bits
        if index < plans:
            axes.plot(*place, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.2)
        else:
            axes.plot(*place, "x", color=PEER, markersize=6, markeredgewidth=1.6)
        marks.setdefault((index < plans, round(place[0], 2), round(place[1], 1)), []).append((title, plan))
    for (circled_one, _, _), same in marks.items():
        text = ", ".join(title.partition("  ")[0] for title, _ in same)
        _label(axes, same[0][1], survey, text, (0, -11) if circled_one else (6, 7), "center")
    circled = "worth the budget" if survey.found else "as asked for"
    axes.plot([], [], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, label=circled)
    axes.plot([], [], "x", color=PEER, markersize=6, markeredgewidth=1.6, label="something else")
    if survey.budget is not None:
        axes.axvline(survey.budget / GIB, color=INK, linestyle="--", linewidth=1, label=f"budget, {survey.budget_text}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(left * 0.6, right)
    axes.set_ylim(bottom=axes.get_ylim()[0] * 0.9)
    ticker = _ticker()
    axes.xaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_locator(ticker.FixedLocator((2, 3, 4, 5, 6, 8, 10, 12, 16)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel(AXES[survey.on])
    axes.set_ylabel("mean bits of the weights\nthat a token meets (not accuracy)")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    _clean(axes)


def _stack(axes: Any, survey: Survey, bars: Sequence[tuple[str, Plan]]) -> None:
    """Bytes of the files by part."""
    names = [title for title, _ in bars]
    start = [0.0] * len(bars)
    for label, components, color in PARTS:
        sizes = [sum(plan.components[name] for name in components) / GIB for _, plan in bars]
        axes.barh(names, sizes, left=start, color=color, label=label, height=0.7)
        start = [a + b for a, b in zip(start, sizes, strict=True)]
    memory = [plan.resident.total / GIB for _, plan in bars]
    axes.plot(memory, names, "|", color=INK, markersize=11, markeredgewidth=1.8, label="memory while it answers")
    if survey.budget is not None and survey.on in ("file", "resident"):
        axes.axvline(survey.budget / GIB, color=INK, linestyle="--", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("GiB of weight files, by part")
    _clean(axes)


def _bars(survey: Survey, rows: int) -> tuple[list[tuple[str, Plan]], int]:
    """(title, plan) of every bar, and how many of them are plans; numbers mark plans, letters what is beside them."""
    plans = list(survey.found.plans[:rows]) if survey.found else [survey.plan]
    found = [(f"{mark}  {plan.choice.title()}", plan) for mark, plan in enumerate(plans, start=1)]
    beside = [(f"{mark}  {peer.title}", peer.plan) for mark, peer in zip(ascii_uppercase, survey.peers, strict=False)]
    return found + beside, len(found)


def _places(plans: Sequence[Plan], survey: Survey) -> tuple[list[float], list[float]]:
    return [plan.bytes(survey.on) / GIB for plan in plans], [plan.token_bits for plan in plans]


def _label(axes: Any, plan: Plan, survey: Survey, text: str, shift: tuple[int, int], side: str) -> None:
    place = plan.bytes(survey.on) / GIB, plan.token_bits
    axes.annotate(text, place, xytext=shift, textcoords="offset points", fontsize=8, ha=side, va="center")


def _clean(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _ticker() -> Any:
    from matplotlib import ticker

    return ticker
