"""Draws the pictures of docs/benchmarks*.md from the reports of kernels.py and engine.py. Needs matplotlib.

python -m benchmarks.plot
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.page import PAGES
from benchmarks.report import Numbers
from benchmarks.shapes import SHAPES

INK = "#7d8590"
"""Legible on light and dark pages."""
OURS, THEIRS, LIMIT = "#2f81f7", "#a8b3bf", "#d29922"
Row = dict[str, Any]
Bars = dict[str, Numbers]


def kernel_panels(report: Row) -> dict[str, Bars]:
    """{title: speeds by name}: ternary products of the largest matrix measured, one thread."""
    rows = [row for row in report["rows"] if row["threads"] == min(r["threads"] for r in report["rows"])]
    largest = max(rows, key=lambda row: row["shape"]["F"] * row["shape"]["H"])["shape"]
    ours = {row["format"] for row in rows}  # rows also compare our formats with each other
    panels: dict[str, Bars] = {}
    for row in rows:
        if row["shape"] != largest or row["format"] not in ("2bit", "base3") or row["peer_name"] == "read bandwidth":
            continue
        matrix = f"{largest['F']} x {largest['H']}, {_threads(row)}"
        tokens = "one token" if row["tokens"] == 1 else f"{row['tokens']} tokens"
        bars = panels.setdefault(f"{row['what']}, {tokens}, {matrix}\n{row['unit']}", {})
        peer = f"mote {row['peer_name']}" if row["peer_name"] in ours else row["peer_name"]
        bars[f"mote {row['format']}"], bars[peer] = row["ours"], row["peer"]
    return panels


def engine_panels(report: Row) -> dict[str, Bars]:
    """{title: tokens a second by name}: decode and the longest prompt, of the first run of each shape with the fewest
    threads."""
    panels: dict[str, Bars] = {}
    threads = min(row["threads"] for row in report["rows"])
    longest = max(row["tokens"] for row in report["rows"])
    first: dict[str, str] = {}
    for row in sorted(report["rows"], key=lambda row: list(SHAPES).index(row["model_shape"])):
        if row["unit"] != "tokens/s" or row["threads"] != threads or row["tokens"] not in (1, longest):
            continue
        if row["run"] != first.setdefault(row["model_shape"], row["run"]):
            continue
        what = "decode" if row["what"] == "decode" else f"prompt of {longest}"
        bars = panels.setdefault(f"{what}, {row['model_shape']}, {_threads(row)}\n{row['unit']}", {})
        bars[row["format"]], bars[row["peer_name"]] = row["ours"], row["peer"]
    return panels


def _threads(row: Row) -> str:
    return "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"


def draw(panels: Mapping[str, Bars], path: Path) -> None:
    """Up to three panels side by side, more in two columns. A bar is a median, its whisker spans minimum to maximum."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK})
    pyplot.rcParams.update({"axes.edgecolor": INK, "font.size": 9, "svg.hashsalt": "mote"})
    columns, bars_of = len(panels) if len(panels) <= 3 else 2, list(map(len, panels.values()))
    heights = [0.7 + 0.3 * max(bars_of[at : at + columns]) for at in range(0, len(panels), columns)]
    size = (4.2 * columns, sum(heights))
    figure, axes = pyplot.subplots(len(heights), columns, figsize=size, height_ratios=heights, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, bars) in zip(axes.flat, panels.items(), strict=False):
        names = sorted(bars, key=lambda name: bars[name]["median"])
        medians = [bars[name]["median"] for name in names]
        below = [bars[name]["median"] - bars[name]["min"] for name in names]
        above = [bars[name]["max"] - bars[name]["median"] for name in names]
        colours = [OURS if n.startswith("mote") else LIMIT if n.endswith("peak") else THEIRS for n in names]
        axis.barh(names, medians, xerr=(below, above), color=colours, ecolor=INK)
        axis.set_title(title, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    print(path)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    for machine in PAGES:
        for name, panels in (("kernels", kernel_panels), ("engine", engine_panels)):
            path = machine.results / f"{name}.json"
            if path.exists() and (found := panels(json.loads(path.read_text()))):
                draw(found, machine.picture(name))


if __name__ == "__main__":
    main()
