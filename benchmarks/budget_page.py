"""The tables of docs/explanation/budget.md and its picture, from the report of budget.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.budget_variants import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURE = ROOT / "docs/explanation/budget.md", ROOT / "docs/images/budget.svg"
BEGIN, END = "<!-- budget: filled by python -m benchmarks.budget --draw -->", "<!-- end of budget -->"
BUDGETS = (2, 3, 4, 6, 8)
"""Sixteenths of MoE-LLaVA's four experts in BF16. In the paper's accounting 3 are its 3.4 GB at 3B, 6 its 6.8 GB."""
STYLE = {
    "mote": ("#2f81f7", (4, 8)),
    "moe4": ("#d29922", (5, -13)),
    "moe3": ("#b5541c", (-30, -12)),
    "moe2": ("#8250df", (-28, -20)),
    "dense": ("#57606a", (-26, -18)),
}
"""Colour of a family, and where its labels stand."""
BROKEN = 50.0
"""Percent below which the picture has an axis of its own: two of the skills are then gone."""


def best_methods(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each variant the row of the method that scores best on average."""
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        key = row["family"], row["width"]
        if key not in best or row["average"]["value"] > best[key]["average"]["value"]:
            best[key] = row
    return list(best.values())


def precision(row: Mapping[str, Any]) -> str:
    """BF16, or INT4 and the method that made it."""
    return "BF16" if row["width"] == "none" else f"{row['width'].upper()} {row['method'].upper()}"


def best_within(rows: Sequence[Mapping[str, Any]], budget: float) -> list[Mapping[str, Any]]:
    """Of each family that has any, the best on average of the variants within `budget` sixteenths."""
    found = []
    for name in FAMILIES:
        fitting = [row for row in rows if row["family"] == name and row["sixteenths"] <= budget + 1e-6]
        if fitting:
            found.append(max(fitting, key=lambda row: row["average"]["value"]))
    return found


def tables(report: Mapping[str, Any]) -> str:
    """The page's tables, as Markdown."""
    rows = report["rows"]
    skills = list(rows[0]["skills"])

    def line(row: Mapping[str, Any]) -> str:
        scores = " | ".join(f"{100 * row['skills'][s]['value']:.1f}" for s in skills)
        average = row["average"]
        interval = f"{100 * average['value']:.1f} ({100 * average['low']:.1f} to {100 * average['high']:.1f})"
        start = f"| {row['title']} | {precision(row)} | {row['sixteenths']:.2f}/16 | {row['ffn_bytes']:,}"
        return f"{start} | {scores} | {interval} |"

    head = f"| model | after training | paper's accounting | true bytes | {' | '.join(skills)} | average (95%) |"
    rule = "|---|---|---:|---:|" + "---:|" * len(skills) + "---|"
    parts = ["Every variant:", "", head, rule, *map(line, rows)]
    for budget in BUDGETS:
        within = best_within(rows, budget)
        note = {3: ", as the paper's 3.4 GB at 3B", 6: ", as its 6.8 GB"}.get(budget, "")
        parts += ["", f"The best of each within {budget}/16 of four BF16 experts{note}:", "", head, rule]
        parts += map(line, sorted(within, key=lambda row: -row["average"]["value"]))
    return "\n".join(parts)


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Average accuracy over true bytes, a line a family, with the intervals."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    from benchmarks.plot import INK

    pyplot.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK})
    pyplot.rcParams.update({"axes.edgecolor": INK, "font.size": 10, "svg.hashsalt": "mote"})
    # What broke lies far below all else: an axis of its own keeps the rest apart.
    figure, axes = pyplot.subplots(2, 1, figsize=(8.4, 5.6), sharex=True, height_ratios=(6, 1))
    best = best_methods(report["rows"])
    for name, family in FAMILIES.items():
        points = sorted((r for r in best if r["family"] == name), key=lambda r: r["ffn_bytes"])
        x = [row["ffn_bytes"] / 1e6 for row in points]
        y = [100 * row["average"]["value"] for row in points]
        below = [100 * (row["average"]["value"] - row["average"]["low"]) for row in points]
        above = [100 * (row["average"]["high"] - row["average"]["value"]) for row in points]
        colour, offset = STYLE[name]
        for axis in axes:
            axis.errorbar(
                *(x, y, (below, above)), marker="o", capsize=3, label=family.title, color=colour, elinewidth=0.8
            )
            for row, at, value in zip(points, x, y, strict=True):
                width = {"none": "BF16"}.get(row["width"], row["width"].upper())
                axis.annotate(
                    *(width, (at, value), offset),
                    textcoords="offset points",
                    fontsize=8,
                    color=colour,
                    annotation_clip=True,
                )
            axis.set_xscale("log")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(*_limits(best, broken=False))
    axes[0].spines["bottom"].set_visible(False)
    axes[0].tick_params(bottom=False, which="both")
    axes[1].set_ylim(*_limits(best, broken=True))
    cut = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 8, "color": INK, "clip_on": False}
    axes[0].plot(0, 0, transform=axes[0].transAxes, **cut)
    axes[1].plot(0, 1, transform=axes[1].transAxes, **cut)
    ticks = [25, 50, 100, 200, 400, 800]
    axes[1].set_xticks(ticks, map(str, ticks))
    axes[1].minorticks_off()
    axes[1].set_xlim(left=0.7 * min(row["ffn_bytes"] for row in best) / 1e6)
    axes[1].set_xlabel("feed-forward networks as stored, MB, scales and routers included")
    axes[0].set_ylabel("average of the skills, val split, percent")
    axes[0].legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def _limits(rows: Sequence[Mapping[str, Any]], *, broken: bool) -> tuple[float, float]:
    """Percent from and to, of an axis that shows every row on one side of `BROKEN`, whiskers included."""
    shown = [row["average"] for row in rows if (100 * row["average"]["value"] < BROKEN) == broken]
    ends = [100 * average[end] for average in shown for end in ("low", "high")] or [0.0]
    return min(ends) - 3, max(ends) + 3


def filled(page: str, report: Mapping[str, Any]) -> str:
    """The page with the report's tables."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables(report)}\n\n{END}{after}"
