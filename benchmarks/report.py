"""What every benchmark writes: `{schema, machine, versions, git, rows}`, and how two sides are timed fairly.

Sides take turns within a round, so that other load on the machine hits all alike; a ratio is one of medians of the
same run, and above 1 when ours is better.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

Side = TypeVar("Side")
SCHEMA = 1
RESULTS = Path(__file__).resolve().parent / "results"

SLOW = 2.0
_IDLE = 0.5
Numbers = dict[str, float]
"""median, min, max, n of repeated measurements."""


def warn_if_busy(program: str) -> None:
    """Says so on stderr when other work is running.

    Engines whose threads wait for each other by spinning (OpenMP: ggml, torch, litespark) then lose a time slice at
    every barrier, so that rows with two threads and more would flatter us.
    """
    load = os.getloadavg()[0]
    if load > _IDLE:
        print(f"{program}: load average {load:.1f}: stop other work before you quote a ratio", file=sys.stderr)


def summary(values: Sequence[float]) -> Numbers:
    """Median, min, max and count, at four significant digits."""
    rounded = {"median": median(values), "min": min(values), "max": max(values)}
    return {**{name: float(f"{value:.4g}") for name, value in rounded.items()}, "n": len(values)}


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """Wall time of one call, the mean of `repeats`."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def in_turn(sides: Iterable[Side], number: int) -> list[Side]:
    """The order of sides in a round."""
    return list(sides)[:: -1 if number % 2 else 1]


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int, shortest: float = 0.02) -> dict[str, list[float]]:
    """{side: seconds per call, one number a round}, sides taking turns; a turn lasts at least `shortest` seconds.

    Every second round goes backwards, so that no side always follows the same one. A side that takes longer than `SLOW`
    seconds sits out all rounds but the first three.
    """
    repeats, turns = {}, {}
    for name, call in sides.items():
        call()
        took = seconds(call)
        repeats[name] = max(1, round(shortest / max(took, 1e-7)))
        turns[name] = rounds if took < SLOW else min(rounds, 3)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, call in in_turn(sides.items(), number):
            if number < turns[name]:
                times[name].append(seconds(call, repeats[name]))
    return times


def rates(work: float, times: Sequence[float]) -> Numbers:
    """Summary of 1e9 units of work a second."""
    return summary([work / t / 1e9 for t in times])


def compare(ours: Numbers, peer: Numbers, *, smaller_is_better: bool = False) -> dict[str, Any]:
    """The fields `ours`, `peer` and `ratio` of a row."""
    a, b = (peer, ours) if smaller_is_better else (ours, peer)
    return {"ours": ours, "peer": peer, "ratio": round(a["median"] / b["median"], 3)}


def header(versions: Mapping[str, str]) -> dict[str, Any]:
    """All of a report but its rows. versions: of peers, beside those of our own environment."""
    from mote.checkpoint.environment import record_environment

    environment = record_environment()
    machine = {key: environment[key] for key in ("platform", "cpu", "cores", "memory_bytes")}
    # Of the last quarter of an hour: a busy machine shows.
    machine["load_average"] = round(os.getloadavg()[2], 2)
    merged = {**environment["versions"], **versions}
    return {"schema": SCHEMA, "machine": machine, "versions": merged, "git": environment["git"]}


def processor(cpu: Mapping[str, Any]) -> str:
    """The "cpu" of a machine in one line, for rows that say themselves where they come from."""
    return f"{cpu['model']}: {' '.join(cpu['features'])}"


def save(path: Path, versions: Mapping[str, str], rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
    """Writes a report. more: further keys, such as the settings of the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**header(versions), **more, "rows": list(rows)}, indent=1) + "\n")
