"""The report's figures, as SVG that takes the page's text colour, so that one figure fits light and dark pages."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

INK = "#010203"
"""Stands for the page's text colour while matplotlib draws; no other element has it."""
SERIES = {"blind": "#c4cad1", "dense": "#0072b2", "mote": "#e69f00", "packed": "#009e73"}
"""Colours that differ for all kinds of colour vision (Okabe and Ito)."""
LABELS = {
    "blind": "blind baseline",
    "dense": "dense, stage II",
    "mote": "MoTE, stage III",
    "packed": "MoTE, packed",
}
STYLE = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",  # the page's fonts, and text that can be selected
    "svg.hashsalt": "mote",  # the same figure has the same bytes
}
LOSS_STAGES = {"align": "I align", "instruct": "II instruct", "experts": "III experts"}


def accuracy(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Bars with 95% intervals. scores: series -> skill or "average" -> {"value", "low", "high"}, from 0 to 1."""
    series = [name for name in SERIES if name in scores]
    named = dict.fromkeys(skill for name in series for skill in scores[name])
    skills = sorted(named, key=lambda skill: skill == "average")  # the order of the scores, the average last
    width = 0.8 / max(1, len(series))
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4))
        axes = figure.add_subplot()
        for place, name in enumerate(series):
            rows = [scores[name].get(skill) for skill in skills]
            x = [i + (place - (len(series) - 1) / 2) * width for i, row in enumerate(rows) if row]
            values = [100 * row["value"] for row in rows if row]
            low = [100 * max(0, row["value"] - row["low"]) for row in rows if row]
            high = [100 * max(0, row["high"] - row["value"]) for row in rows if row]
            axes.bar(x, values, width * 0.92, color=SERIES[name], label=LABELS[name])
            axes.errorbar(x, values, yerr=[low, high], fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        axes.set_xticks(range(len(skills)), skills)
        axes.set_ylim(0, 100)
        axes.set_ylabel("score, %")
        _grid(axes)
        figure.legend(loc="upper center", ncols=len(series), frameon=False)
        figure.subplots_adjust(left=0.07, right=0.99, top=0.88, bottom=0.1)
        return _svg(figure)


def sizes(parts: Sequence[tuple[str, Mapping[str, int]]]) -> str:
    """Stacked horizontal bars. parts: (label, {"shared" | "routed": bytes}) from top to bottom."""
    colors = {"shared": "#56b4e9", "routed": "#009e73"}
    titles = {"shared": "feed-forward network in bf16 (the shared expert)", "routed": "routed experts, scales, routers"}
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 0.5 + 0.45 * len(parts)))
        axes = figure.add_subplot()
        largest = max(sum(split.values()) for _, split in parts)
        for row, (_, split) in enumerate(parts):
            left = 0.0
            for kind, count in split.items():
                axes.barh(row, count / 1e6, 0.62, left=left, color=colors[kind])
                left += count / 1e6
            axes.text(left + largest / 1e8, row, f" {left:,.1f} MB", va="center")
        axes.set_yticks(range(len(parts)), [label for label, _ in parts])
        axes.invert_yaxis()
        axes.set_xlim(0, largest / 1e6 * 1.14)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        handles = [Patch(color=color) for color in colors.values()]
        figure.legend(handles, list(titles.values()), loc="upper right", ncols=2, frameon=False)
        figure.subplots_adjust(left=0.25, right=0.99, top=1 - 0.35 / figure.get_figheight(), bottom=0.02)
        return _svg(figure)


def losses(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Loss against optimiser step, one panel per stage. logs: stage -> rows with "step" and "loss"."""
    stages = [name for name in LOSS_STAGES if logs.get(name)]
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 2.6))
        panels = figure.subplots(1, len(stages), squeeze=False)[0]
        for axes, name in zip(panels, stages, strict=True):
            steps = [row["step"] for row in logs[name]]
            axes.plot(steps, [row["loss"] for row in logs[name]], color=SERIES["dense"], linewidth=1.4)
            axes.set_title(f"stage {LOSS_STAGES[name]}", fontsize=10)
            axes.set_xlabel("step")
            axes.set_ylim(bottom=0)
            _grid(axes)
        panels[0].set_ylabel("loss, nats per answer token")
        figure.subplots_adjust(left=0.07, right=0.99, top=0.9, bottom=0.18, wspace=0.18)
        return _svg(figure)


def routing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Two heatmaps, image and text tokens: share of the tokens of a layer that each expert took.

    rows: per layer {"layer", "load_image", "load_text"}, loads as counts per expert.
    """
    experts = len(rows[0]["load_text"])
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 1.6 + 0.34 * experts))
        panels = figure.subplots(2, 1, sharex=True)
        for axes, (key, title) in zip(
            panels, (("load_image", "image tokens"), ("load_text", "text tokens")), strict=True
        ):
            shares = [[load / (sum(row[key]) or 1) for load in row[key]] for row in rows]
            grid = [[100 * share[expert] for share in shares] for expert in range(experts)]
            image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
            axes.set_yticks(range(experts), [f"expert {i + 1}" for i in range(experts)])
            axes.set_title(title, fontsize=10, loc="left")
        layers = [row["layer"] for row in rows]
        shown = range(0, len(layers), max(1, len(layers) // 15))
        panels[1].set_xticks(list(shown), [str(layers[i]) for i in shown])
        panels[1].set_xlabel("layer")
        figure.subplots_adjust(left=0.09, right=0.9, top=0.92, bottom=0.16, hspace=0.35)
        bar = figure.colorbar(image, ax=list(panels), pad=0.015)
        bar.set_label("share of tokens, %")
        bar.outline.set_visible(False)
        return _svg(figure)


def _grid(axes: Any) -> None:
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element without fixed size, in the page's text colour."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1))
