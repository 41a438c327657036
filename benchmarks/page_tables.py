"""Tables of docs/benchmarks.md: speeds of every side, then the ratios of ours to each peer's.

Each row of a report compares one of our sides with a peer; here a side's numbers stand once, however many it was
compared with.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]
SHARES = ("read bandwidth", "weights + cache")
"""Limits in units of their own: only our share of them is shown."""
LIMITS = ("integer dot peak", *SHARES)


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines)) + "\n"


def cell(numbers: Row, unit: str) -> str:
    """Median (min-max), in MiB for bytes."""
    scale, form = (2**-20, ",.0f") if unit == "bytes" else (1, ".3g")
    median, low, high = (format(numbers[name] * scale, form) for name in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


def bold(ratio: float) -> str:
    """A ratio; bold where we lose."""
    return f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"


def speeds(rows: Sequence[Row], column: Callable[[Row], str]) -> str:
    """A line for every side and limit, a column for every kind of measurement (`column` names a row's)."""
    columns = list(dict.fromkeys(map(column, rows)))
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row["peer_name"] in SHARES:
            continue
        place = found.setdefault((row["format"], row["precision"]), {})
        place[column(row)] = cell(row["ours"], row["unit"])
        peer = found.setdefault((row["peer_name"], row.get("peer_precision", "limit")), {})
        peer[column(row)] = cell(row["peer"], row["unit"])
    # Limits last, ours first.
    ours = {row["format"] for row in rows}
    order = sorted(found, key=lambda side: (side[0] in LIMITS, side[0] not in ours))
    return markdown(
        ("", "precision", *columns),
        ((name, precision, *(found[name, precision].get(c, "") for c in columns)) for name, precision in order),
    )


def ratios(rows: Sequence[Row], column: Callable[[Row], str]) -> str:
    """A line for each of our sides and each peer, ratios in the columns; of several rows the least and the greatest."""
    columns = list(dict.fromkeys(map(column, rows)))
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault((row["format"], row["peer_name"]), {}).setdefault(column(row), []).append(row["ratio"])
    return markdown(
        ("ours", "against", *columns),
        (
            (ours, peer, *(_span(pair.get(c, []), peer in LIMITS) for c in columns))
            for (ours, peer), pair in found.items()
        ),
    )


def grouped(rows: Iterable[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of `keys`, in the order in which they appear."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def _span(values: Sequence[float], share: bool) -> str:
    shown = [f"{value:.0%}" if share else bold(value) for value in sorted(values)]
    return " to ".join(dict.fromkeys([shown[0], shown[-1]])) if shown else ""


def losses(rows: Sequence[Row]) -> str:
    """The rows where another engine is better."""
    ours = {row["format"] for row in rows}  # among ourselves nobody loses; a time to the first word is prefill again
    real = [row for row in rows if row["peer_name"] not in (*LIMITS, *ours) and row["what"] != "ttft"]
    lost = sorted((row for row in real if row["ratio"] < 1), key=lambda row: float(row["ratio"]))
    if not lost:
        return f"Rows where we lose: none of {len(real)}.\n"
    lines = [
        f"- {row['format']} against {row['peer_name']}: {row['what']}, {row['tokens']} tokens, {row['model_shape']} "
        f"({row['shape']['F']} x {row['shape']['H']}), {row['threads']} thread(s): {row['ratio']:.2f}"
        for row in lost
    ]
    return f"Rows where we lose: {len(lost)} of {len(real)}.\n\n" + "\n".join(lines) + "\n"
