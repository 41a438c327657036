"""What we set out to reach, as data, and what the reports say about it; page.py prints both."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A threshold on a number of all rows that match; the least of them counts.

    report: "kernels", "engine" or "demo". where: key of a row -> allowed values. reach: the least value. value: key of
    the number, "ratio" or one that `derived` adds. at_most: the number must be `reach` or less instead.
    """

    text: str
    report: str
    where: Mapping[str, Sequence[Any]]
    reach: float
    value: str = "ratio"
    at_most: bool = False
    threads: Sequence[int] = field(default=(1,))


_EXPERTS = ("2bit", "base3")
_MIXTURES = tuple(f"mote {e} {codec}" for e in (4, 16, 64) for codec in _EXPERTS)
_THEIRS = tuple(f"llama.cpp {e} {kind}" for e in (4, 16, 64) for kind in ("TQ1_0", "TQ2_0"))

GOALS = (
    *(
        Goal(
            text=f"expert GEMV from RAM against {' and '.join(peers)}, {codec}",
            report="kernels",
            where={"what": ("gemv",), "format": (codec,), "peer_name": peers},
            reach=reach,
        )
        for codec in _EXPERTS
        for peers, reach in ((("TQ2_0",), 1.8), (("TQ1_0",), 3.3), (("IQ2_BN", "IQ2_BN_R4"), 1.15))
    ),
    Goal(
        text="2-bit GEMV, share of the read bandwidth",
        report="kernels",
        where={"what": ("gemv",), "format": ("2bit",), "peer_name": ("read bandwidth",)},
        reach=0.85,
    ),
    *(
        Goal(
            text=f"expert GEMM, 64 and 729 tokens, against {peer}",
            report="kernels",
            where={"what": ("gemm",), "format": _EXPERTS, "peer_name": (peer,)},
            reach=reach,
        )
        for peer, reach in (("TQ2_0", 3.3), ("torch bf16", 1.9), ("integer dot peak", 0.85))
    ),
    *(
        Goal(
            text=text,
            report="engine",
            where={
                "what": (what,),
                "format": _MIXTURES,
                "peer_name": _THEIRS,
                "tokens": tokens,
                "model_shape": ("1.5b",),
            },
            reach=reach,
        )
        for text, what, tokens, reach in (
            ("decode, against llama.cpp's MoTE of the same shape", "decode", (1,), 1.3),
            ("prefill of 729 tokens, against the same", "prefill", (729,), 3.0),
            ("time from a picture to the first word, theirs to ours, tower included", "ttft", (729,), 2.5),
        )
    ),
    Goal(
        text="decode, against our dense BF16: share of what the bytes a token promise",
        report="engine",
        where={"what": ("decode",), "format": _MIXTURES, "peer_name": ("mote dense bf16",)},
        reach=0.85,
        value="of_bytes",
    ),
    Goal(
        text="our dense BF16, decode, share of the read bandwidth",
        report="engine",
        where={"what": ("decode",), "format": ("mote dense bf16",), "peer_name": ("read bandwidth",)},
        reach=0.8,
    ),
    Goal(
        text="decode, against llama.cpp's dense Q4_0",
        report="engine",
        where={"what": ("decode",), "format": _MIXTURES, "peer_name": ("llama.cpp dense Q4_0",)},
        reach=1.0,
    ),
    Goal(
        text="the demo's model, decode: share of a token's time outside the native kernels",
        report="demo",
        where={"what": ("decode",)},
        reach=0.3,
        value="outside_kernels",
        at_most=True,
    ),
    Goal(
        text="decode with 64 experts, against 4",
        report="engine",
        where={
            "what": ("decode",),
            "format": ("mote 64 base3", "mote 64 2bit"),
            "peer_name": ("mote 4 base3", "mote 4 2bit"),
        },
        reach=0.952,
    ),
    Goal(
        text="weights and cache, share of the peak memory above the imports (1.5B, 3B)",
        report="engine",
        where={"what": ("resident",), "peer_name": ("weights + cache",), "model_shape": ("1.5b", "3b")},
        reach=0.909,
    ),
    Goal(
        text="seconds from opening the 3B shape to the first token",
        report="engine",
        where={"what": ("open",), "format": ("mote 4 base3",), "model_shape": ("3b",)},
        reach=1.5,
        value="seconds",
        at_most=True,
    ),
    Goal(
        text="GiB of the 3B shape's feed-forward networks, INT4 and 4 base-3 experts, all bytes of the file",
        report="engine",
        where={"what": ("resident",), "format": ("mote 4 base3",), "model_shape": ("3b",)},
        reach=3.05,
        value="ffn_gib",
        at_most=True,
    ),
)


def derived(row: Row) -> dict[str, Any]:
    """A row with the numbers that some goals are about."""
    found = dict(row)
    found["seconds"] = row["ours"]["median"] if row["unit"] == "s" else None
    if row.get("peer_token_bytes") and row.get("token_bytes"):
        found["of_bytes"] = row["ratio"] * row["token_bytes"] / row["peer_token_bytes"]
    if parts := row.get("parts"):
        found["outside_kernels"] = (parts["python"] + parts["native_rest"]) / sum(parts.values())
    if row.get("ffn_bytes"):
        found["ffn_gib"] = row["ffn_bytes"] / 2**30
    return found


def matching(goal: Goal, rows: Iterable[Row]) -> list[float]:
    """The goal's number in every row that it is about."""
    found = []
    for row in map(derived, rows):
        fits = all(row.get(key) in allowed for key, allowed in goal.where.items())
        if fits and row["threads"] in goal.threads and row.get(goal.value) is not None:
            found.append(float(row[goal.value]))
    return found


def verdicts(reports: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """(goal, threshold, measured, verdict) of every goal; one that nothing was measured for says so."""
    found = []
    for goal in GOALS:
        numbers = matching(goal, reports.get(goal.report, {}).get("rows", []))
        sign = "<=" if goal.at_most else ">="
        if not numbers:
            found.append((goal.text, f"{sign} {goal.reach:g}", "", "not measured"))
            continue
        reached = [number <= goal.reach if goal.at_most else number >= goal.reach for number in numbers]
        verdict = "yes" if all(reached) else "in part" if any(reached) else "no"
        span = f"{min(numbers):.2f}" if len(numbers) == 1 else f"{min(numbers):.2f} to {max(numbers):.2f}"
        found.append((goal.text, f"{sign} {goal.reach:g}", span, verdict))
    return found
