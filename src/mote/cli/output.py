"""How results are printed: text within 100 columns, or one JSON object."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

WIDTH = 100


def emit(result: Any, *, as_json: bool, lines: Iterable[str], whole: bool = False) -> None:
    """Prints `result` as JSON, or `lines` as text cut to the width, or uncut if `whole`."""
    if as_json:
        print(json.dumps(result, indent=2, sort_keys=True, default=str))
        return
    for line in lines:
        print(line if whole or len(line) <= WIDTH else f"{line[: WIDTH - 3]}...")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table: the first column flush left, the others flush right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def human_bytes(count: int) -> str:
    """ "1,536 B", "3.40 GiB": powers of 1024, three digits."""
    size, unit = float(count), 0
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    while size >= 1024 and unit < len(units) - 1:
        size, unit = size / 1024, unit + 1
    return f"{count:,} B" if unit == 0 else f"{size:.{2 if size < 100 else 1}f} {units[unit]}"


def human_seconds(seconds: float) -> str:
    """ "48 s", "2 min 05 s", "1 h 03 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
