"""Draws packed-format.png: from a ternary matrix to the bytes of one k-group.

python docs/images/packed_format.py        (writes packed-format.png beside this file; needs matplotlib)
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch, Rectangle

PLANES = ("#4c78a8", "#72b7b2", "#eeca3b", "#f58518", "#b279a2")
INK, LIGHT, PALE = "#222222", "#bbbbbb", "#f2f2f2"


def box(ax: Axes, x: float, y: float, w: float, h: float, color: str = "none", **style: object) -> None:
    ax.add_patch(Rectangle((x, y), w, h, facecolor=color, edgecolor=style.pop("edge", INK), **style))


def text(ax: Axes, x: float, y: float, words: str, size: float = 9, **style: object) -> None:
    style = {"ha": "center", "va": "center", "color": INK, **style}
    ax.text(x, y, words, fontsize=size, **style)


def draw_matrix(ax: Axes) -> None:
    """Strips of 64 rows, cut into k-groups; the last ones reach beyond the matrix."""
    ax.set_title("1  matrix: strips and k-groups", fontsize=11, loc="left")
    for strip in range(3):
        for group in range(5):
            chosen = (strip, group) == (0, 1)
            box(ax, group * 20, 128 - strip * 64, 20, 64, PLANES[0] if chosen else PALE, edge=LIGHT)
            text(
                ax,
                group * 20 + (5 if group == 4 else 10),
                160 - strip * 64,
                str(strip * 5 + group),
                color="white" if chosen else INK,
            )
    box(ax, 0, 192 - 150, 90, 150, linewidth=1.6)
    box(ax, 90, 42, 10, 150, edge=LIGHT, hatch="////", linewidth=0)
    box(ax, 0, 0, 100, 42, edge=LIGHT, hatch="////", linewidth=0)
    text(ax, 45, 200, "K inputs")
    text(ax, -6, 117, "N rows (outputs)", rotation=90)
    text(ax, 50, -12, "numbers: order on disk, 256 bytes each\nhatched: padding, weight 0", 8)
    ax.set_xlim(-12, 104)
    ax.set_ylim(-26, 210)


def draw_group(ax: Axes) -> None:
    """One k-group: 64 rows in 4 blocks of 16 by planes of 4 inputs."""
    ax.set_title("2  k-group 1: 64 rows x 16 or 20 inputs", fontsize=11, loc="left")
    for plane, color in enumerate(PLANES):
        x = plane * 4
        box(ax, x, 0, 4, 64, color, alpha=0.5 if plane < 4 else 0.3, linewidth=0)
        for b in range(4):
            box(ax, x + b, 15, 1, 1, color, linewidth=0.4)
        text(ax, x + 2, 66.2, f"p = {plane}")
        text(ax, x + 2, -2.2, f"{x}..{x + 3}", 8)
    text(ax, 18, -5.4, "base3 only", 8)
    text(ax, 8, -5.4, "inputs", 8)
    for block in range(4):
        box(ax, 0, 48 - 16 * block, 20, 16, linewidth=1.2)
        text(
            ax,
            -0.5,
            56 - 16 * block,
            f"rows {16 * block}..{16 * block + 15}\nbytes {64 * block}..{64 * block + 63}",
            8,
            ha="right",
        )
    ax.set_xlim(-7.5, 20.5)
    ax.set_ylim(-8, 69)


def draw_bytes(ax: Axes) -> None:
    """The four bytes of row 48 and the digits inside one of them."""
    ax.set_title("3  the 4 bytes of one row: 192..195 for row 48", fontsize=11, loc="left")
    for b in range(4):
        box(ax, b * 5, 11, 5, 2.2, PALE)
        text(ax, b * 5 + 2.5, 12.1, f"byte {192 + b}\nb = {b}", 8)
        for plane, color in enumerate(PLANES):
            box(ax, b * 5, 9 - plane * 1.3, 5, 1.3, color, alpha=0.85 if plane < 4 else 0.5, linewidth=0.6)
            text(ax, b * 5 + 2.5, 9.65 - plane * 1.3, f"input {plane * 4 + b}", 8)
    text(ax, 10, 3.2, "in each cell one digit = weight + 1; the highest plane comes last in the sums below", 8)
    lines = (
        ("2bit   byte = d0 + 4 d1 + 16 d2 + 64 d3", "-1, 0, +1, 0  ->  0 + 4 + 32 + 64 = 100 = 0x64"),
        ("base3  byte = d0 + 3 d1 + 9 d2 + 27 d3 + 81 d4", "-1, 0, +1, 0, +1  ->  0 + 3 + 18 + 27 + 162 = 210 = 0xd2"),
    )
    for i, (formula, example) in enumerate(lines):
        text(ax, -2.6, 1.4 - i * 2.6, formula, 8.5, ha="left", family="monospace", weight="bold")
        text(ax, -2.6, 0.4 - i * 2.6, example, 8, ha="left", family="monospace")
    ax.set_xlim(-3, 22)
    ax.set_ylim(-3.2, 13.8)


def main() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 5.4), width_ratios=(0.85, 1, 1.35), constrained_layout=True)
    for ax, draw in zip(axes, (draw_matrix, draw_group, draw_bytes), strict=True):
        draw(ax)
        ax.axis("off")
    for start, end in (((20, 16), (0, 13.2)), ((20, 15), (0, 3.8))):
        line = ConnectionPatch(start, end, "data", "data", axesA=axes[1], axesB=axes[2], color=LIGHT, linestyle=":")
        figure.add_artist(line)
    figure.savefig(Path(__file__).with_name("packed-format.png"), dpi=110)


if __name__ == "__main__":
    main()
