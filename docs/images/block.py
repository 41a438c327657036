"""Draws block.svg: what up-cycling makes of one layer's feed-forward network.

python docs/images/block.py        (writes block.svg beside this file; needs matplotlib)
"""

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, PALE = "#222222", "#8c8c8c"
SHARED, ROUTED, ROUTER = "#56b4e9", "#8fd1b9", "#f0e0a8"


def box(ax: Axes, x: float, y: float, w: float, h: float, words: str, color: str, *, faded: bool = False) -> None:
    shape = FancyBboxPatch(
        (x, y), w, h, boxstyle="round,pad=0,rounding_size=0.8", facecolor=color, edgecolor=INK, linewidth=0.9
    )
    shape.set_alpha(0.45 if faded else 1.0)
    ax.add_patch(shape)
    ax.text(x + w / 2, y + h / 2, words, ha="center", va="center", fontsize=9, color=PALE if faded else INK)


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], *, faded: bool = False, style: str = "solid"
) -> None:
    color = PALE if faded else INK
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=color, linestyle=style))


def label(ax: Axes, x: float, y: float, words: str, size: float = 9, **style: str) -> None:
    ax.text(x, y, words, fontsize=size, color=INK, **{"ha": "center", "va": "center", **style})


def dense(ax: Axes) -> None:
    label(ax, 12, 57, "one layer of the dense model", 10)
    label(ax, 12, 4, "h")
    arrow(ax, (12, 6), (12, 20))
    box(ax, 3, 20, 18, 14, "FFN\nbf16", SHARED)
    arrow(ax, (12, 34), (12, 49))
    label(ax, 12, 51, "y = FFN(h)")


def mixture(ax: Axes) -> None:
    label(ax, 70, 57, "the same layer of MoTE: 4 routed experts, top 1", 10)
    label(ax, 58, 4, "h")
    arrow(ax, (58, 6), (45, 20))
    box(ax, 36, 20, 18, 14, "shared expert\nthe same FFN\nbf16, frozen", SHARED)
    arrow(ax, (58, 6), (79, 9.5))
    box(ax, 79, 7, 18, 5, "router, fp32: p, e", ROUTER)
    arrow(ax, (58, 6), (74.5, 22))
    label(ax, 92, 16.5, "chooses e", ha="left")
    for i in range(4):
        chosen = i == 1
        x = 60 + i * 10
        words = f"ternary\nexpert {i + 1}\n1.6 bits"
        box(ax, x, 22, 9, 12, words, ROUTED, faded=not chosen)
        arrow(ax, (88, 12), (x + (7 if chosen else 4.5), 22), faded=not chosen, style="dashed")
    arrow(ax, (45, 34), (56, 46))
    arrow(ax, (74.5, 34), (60, 46))
    label(ax, 69, 41, r"times $p_e$", ha="left")
    label(ax, 58, 46.6, "+", 13)
    arrow(ax, (58, 48), (58, 51))
    label(ax, 58, 53, r"y = FFN(h) + $p_e$ FFN$_e$(h)")


def main(out: Path) -> None:
    """Writes the picture; its suffix decides the kind of file."""
    style = {
        "svg.hashsalt": "mote",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "mathtext.fontset": "dejavusans",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(9.2, 4.6), facecolor="white")
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(0, 102)
        ax.set_ylim(0, 60)
        ax.axis("off")
        dense(ax)
        arrow(ax, (24, 27), (33, 27))
        label(ax, 28.5, 30, "up-cycle")
        mixture(ax)
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
