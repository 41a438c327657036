"""The picture of a survey, `mote plan --plot`: bytes against the bits of what a token meets, and where the bytes go."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mote.checkpoint.accounting import GIB
from mote.errors import PlanError
from mote.plan.choice import STORAGES, storage_title
from mote.plan.measure import Plan, measure
from mote.plan.survey import Survey

INK = "#7d8590"
"""Grey that is legible on light and dark pages."""
COLORS = {1: "#56b4e9", 4: "#0072b2", 16: "#009e73", 64: "#cc79a7"}
"""Of numbers of experts: Okabe and Ito's colours, told apart by all."""
PEER = "#d55e00"
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

    style = {"svg.hashsalt": "mote", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK}
    style |= {"xtick.color": INK, "ytick.color": INK, "font.size": 9}
    with pyplot.rc_context(style):
        bars = _bars(survey, rows)
        figure, (above, below) = pyplot.subplots(
            2, 1, figsize=(8.2, 4.6 + 0.3 * len(bars)), height_ratios=(3.4, 0.5 + 0.3 * len(bars)), layout="constrained"
        )
        _scatter(above, survey)
        _stack(below, survey, bars)
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


def _scatter(axes: Any, survey: Survey) -> None:
    """Bytes against bits a token: a line for each number of experts over the storages of the shared expert."""
    asked = survey.plan.choice
    base = replace(asked, kind="mote", experts=4, experts_format="ternary", layers=())
    for experts, color in COLORS.items():
        plans = [measure(survey.skeleton, replace(base, experts=experts, shared=name), survey.use) for name in STORAGES]
        axes.plot(*_places(plans, survey), "o-", color=color, markersize=4, linewidth=1.2, label=f"{experts} experts")
        if experts == 1:
            for plan in plans:
                name = storage_title(plan.choice.shared)
                _label(axes, plan, survey, f"shared {name}", (-5, 0), "right")
    shown: set[tuple[float, float]] = set()
    for peer in survey.peers:
        x, y = peer.plan.bytes(survey.on) / GIB, peer.plan.token_bits
        axes.plot(x, y, "x", color=PEER, markersize=7, markeredgewidth=1.6)
        near = any(abs(x - a) < 0.12 * a and abs(y - b) < 0.8 for a, b in shown)
        _label(axes, peer.plan, survey, peer.title, (6, -9 if near else 4), "left")
        shown.add((x, y))
    for plan in survey.found.plans if survey.found else (survey.plan,):
        place = plan.bytes(survey.on) / GIB, plan.token_bits
        axes.plot(*place, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.2)
    if survey.budget is not None:
        axes.axvline(survey.budget / GIB, color=INK, linestyle="--", linewidth=1)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(left * 0.72, right * 1.5)
    axes.xaxis.set_major_locator(_ticker().LogLocator(base=10, subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(_ticker().FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(_ticker().NullFormatter())
    axes.set_xlabel(AXES[survey.on])
    axes.set_ylabel("mean bits of the weights\nthat a token meets (not accuracy)")
    circled = "worth the budget" if survey.found else "as asked for"
    axes.plot([], [], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, label=circled)
    axes.plot([], [], "x", color=PEER, markersize=7, label="otherwise")
    if survey.budget is not None:
        axes.plot([], [], "--", color=INK, label=f"budget, {survey.budget / GIB:.2f} GiB")
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.22)
    axes.set_title(f"{survey.skeleton.name}: MoTE with ternary experts, and what else the bytes buy", fontsize=10)
    _clean(axes)


def _stack(axes: Any, survey: Survey, bars: Sequence[tuple[str, Plan]]) -> None:
    """Bytes of the files by part; the plan first."""
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
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=4)
    _clean(axes)


def _bars(survey: Survey, rows: int) -> list[tuple[str, Plan]]:
    plans = list(survey.found.plans[:rows]) if survey.found else [survey.plan]
    found = [(plan.choice.title(), plan) for plan in plans]
    return found + [(peer.title, peer.plan) for peer in survey.peers]


def _places(plans: Sequence[Plan], survey: Survey) -> tuple[list[float], list[float]]:
    return [plan.bytes(survey.on) / GIB for plan in plans], [plan.token_bits for plan in plans]


def _label(axes: Any, plan: Plan, survey: Survey, text: str, shift: tuple[int, int], side: str) -> None:
    place = plan.bytes(survey.on) / GIB, plan.token_bits
    axes.annotate(text, place, xytext=shift, textcoords="offset points", fontsize=7, ha=side, va="center")


def _clean(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _ticker() -> Any:
    from matplotlib import ticker

    return ticker
