"""How fast is a whole model, against llama.cpp and against our own dense one? Random weights in the shapes of Qwen2.5.

Every engine runs in a process of its own (see worker.py), opened anew in each round; the processes of one run, a shape
and a number of threads, take turns, so that other load hits all alike, and no two share memory. Measured: prompts of 64
and 729 tokens (a question; a picture of the paper's shape), decode, opening to first token, peak memory above the
imports; the machine's read bandwidth in the same rounds. The time from a picture to the first word is the prefill of
its 729 tokens and each engine's own vision tower with its connector, which is timed once (tower.py).

    python -m benchmarks.engine [--shape 0.5b 1.5b] [--experts 4 16 64] [--threads 1 2] [--dir runs/bench]

The first of --codec and --expert-type is measured with every number of experts, the others with the least. Files are
written into --dir first and stay there (several GB). --keep adds to the runs of an earlier report.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ceilings import Ceilings
from benchmarks.engine_rows import Side, Timed, rows_of
from benchmarks.peers import write_checkpoint, write_gguf
from benchmarks.report import RESULTS, header, in_turn, save, warn_if_busy
from benchmarks.shapes import SHAPES
from benchmarks.tower import tower_seconds
from benchmarks.versions import versions_of

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 2048
_BANDWIDTH_MEGABYTES = 512


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run, whose sides take turns: a shape, a number of threads, and what is measured."""

    shape: str
    threads: int
    prompts: tuple[int, ...]
    decode: int
    rounds: int


def sides(shape: str, experts: list[int], codecs: list[str], types: list[str]) -> list[Side]:
    """Ours and theirs at one shape; dense ones first."""
    found = [
        *(Side("mote", write_checkpoint.Model(shape=shape, experts=0, linear=x, head=x)) for x in ("int4", "bf16")),
        Side("llama.cpp", write_gguf.Model(shape=shape, experts=0, linear="Q4_0")),
    ]
    for e in sorted(experts):
        all_kinds = None if e == min(experts) else 1
        ours, theirs = codecs[:all_kinds], types[:all_kinds]
        found += [Side("mote", write_checkpoint.Model(shape=shape, experts=e, codec=codec)) for codec in ours]
        found += [Side("llama.cpp", write_gguf.Model(shape=shape, experts=e, expert=kind)) for kind in theirs]
    return found


def title(plan: Plan, chosen: Iterable[Side]) -> str:
    """The run's name, in which runs of one report differ: "0.5b, 1 thread: dense, 4 and 16 experts"."""
    counts = sorted({side.model.experts for side in chosen})
    *rest, last = ["dense" if count == 0 else str(count) for count in counts]
    listed = f"{', '.join(rest)} and {last}" if rest else last
    threads = f"{plan.threads} thread{'s' * (plan.threads > 1)}"
    return f"{plan.shape}, {threads}: {listed}{' experts' * (counts[-1] > 0)}"


def write(side: Side, folder: Path, peers: Path) -> Path:
    """The side's file or directory, written if it is not there."""
    if isinstance(side.model, write_checkpoint.Model):
        return write_checkpoint.write(side.model, folder)
    m = side.model
    command = [str(peers / "bin/python"), "-m", "benchmarks.peers.write_gguf", "--dir", str(folder)]
    command += ["--shape", m.shape, "--experts", str(m.experts), "--linear-type", m.linear]
    command += ["--expert-type", m.expert, "--head-type", m.head]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return folder / m.file_name


def measured(side: Side, path: Path, plan: Plan, peers: Path) -> dict[str, Any]:
    """What one process says. Raises SystemExit with its last words when it fails."""
    ours = side.engine == "mote"
    python = sys.executable if ours else str(peers / "bin/python")
    module = "benchmarks.mote_worker" if ours else "benchmarks.peers.llama_worker"
    command = [python, "-m", module, str(path), "--threads", str(plan.threads), "--context", str(CONTEXT)]
    command += ["--vocab", str(SHAPES[plan.shape].vocab), "--decode", str(plan.decode)]
    command += ["--prompts", *map(str, plan.prompts)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(plan.threads)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"engine: {side.name} on {path} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def drop(path: Path) -> None:
    """Lets the page cache forget the files: as they were written they lie there in pages of 4 KiB, read again in large
    ones, as on any day but the first."""
    for file in _files(path):
        with file.open("rb", buffering=0) as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(path: Path) -> None:
    """Reads the files once, so that they lie in the page cache and no side waits for the disk."""
    for file in _files(path):
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass


def _files(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


def run(plan: Plan, paths: Mapping[Side, Path], peers: Path, theirs: Path | None) -> list[dict[str, Any]]:
    """The rows of one run, its sides taking turns. paths: each side's file or directory. theirs: one of llama.cpp's,
    for its vision tower."""
    ceilings = Ceilings(_BANDWIDTH_MEGABYTES)
    name = title(plan, paths)
    timed = {side: Timed(threads=plan.threads) for side in paths}
    for path in paths.values():
        drop(path)
    bandwidth = []
    for number in range(plan.rounds):
        for side, path in in_turn(paths.items(), number):
            warm(path)
            bandwidth.append(ceilings.bandwidth(plan.threads))
            timed[side].add(measured(side, path, plan, peers))
            print(f"engine: {name}, round {number + 1}: {side.name}", file=sys.stderr)
    towers = tower_seconds(plan.threads, SHAPES[plan.shape].hidden, theirs, peers)
    return [{"run": name, **row} for row in rows_of(plan.shape, timed, bandwidth, towers)]


def about(plan: Plan, name: str) -> dict[str, Any]:
    """How a run was made, beside the header that all runs of a report share."""
    now = header({})
    return {
        "name": name,
        "git": now["git"],
        "date": datetime.date.today().isoformat(),
        "load_average": now["machine"]["load_average"],
        "rounds": plan.rounds,
        "decode": plan.decode,
    }


def kept(path: Path, versions: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Runs and rows of an earlier report. Raises SystemExit when it is of another machine or other versions."""
    if not path.exists():
        return [], []
    report, now = json.loads(path.read_text()), header(versions)
    for what in ("cpu", "cores", "memory_bytes"):
        if report["machine"][what] != now["machine"][what]:
            raise SystemExit(f"engine: {path} is of another machine ({what}); leave --keep out, or name another --out")
    if report["versions"] != now["versions"]:
        raise SystemExit(f"engine: {path} is of other versions; leave --keep out, or name another --out")
    return report["runs"], report["rows"]


def show(row: dict[str, Any]) -> str:
    """One line of the table."""
    numbers = [f"{n['median']:9.3g} ({n['min']:.3g}-{n['max']:.3g})" for n in (row["ours"], row["peer"])]
    head = f"{row['what']:8} {row['model_shape']} {row['format']:24} T={row['tokens']:<4}{row['threads']} thr"
    return f"{head} {numbers[0]}  {row['peer_name']:34} {numbers[1]} {row['unit']:9} {row['ratio']:6.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["0.5b", "1.5b"])
    parser.add_argument("--experts", nargs="*", type=int, default=[4])
    parser.add_argument("--codec", nargs="*", choices=("base3", "2bit"), default=["base3"])
    parser.add_argument("--expert-type", nargs="*", choices=("TQ2_0", "TQ1_0", "Q4_0"), default=["TQ2_0"])
    parser.add_argument("--only", nargs="+", help="names of sides as they are printed")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--prompts", nargs="+", type=int, default=[64, 729])
    parser.add_argument("--decode", type=int, default=24, help="tokens, 2 or more: the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dir", type=Path, default=Path("runs/bench"))
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"))
    parser.add_argument("--out", type=Path, default=RESULTS / "engine.json")
    parser.add_argument("--keep", action="store_true", help="keep the other runs of --out")
    a = parser.parse_args()
    warn_if_busy("engine")
    peers, folder = a.peers.absolute(), a.dir.absolute()
    versions = versions_of(peers)
    runs, rows = kept(a.out, versions) if a.keep else ([], [])
    for threads in a.threads:
        for shape in a.shape:
            plan = Plan(shape=shape, threads=threads, prompts=tuple(a.prompts), decode=a.decode, rounds=a.rounds)
            offered = sides(shape, a.experts, a.codec, a.expert_type)
            chosen = [side for side in offered if not a.only or side.name in a.only]
            if not any(side.engine == "mote" for side in chosen):
                known = ", ".join(side.name for side in offered if side.engine == "mote")
                raise SystemExit(f"engine: --only names none of ours, with which all are compared: {known}")
            paths = {side: write(side, folder, peers) for side in chosen}
            theirs = next((path for side, path in paths.items() if side.engine == "llama.cpp"), None)
            found = run(plan, paths, peers, theirs)
            print("\n".join(map(show, found)), flush=True)
            name = title(plan, paths)
            runs = [*(run for run in runs if run["name"] != name), about(plan, name)]
            rows = [*(row for row in rows if row["run"] != name), *found]
            # After each run, so that a program that is stopped leaves what it has measured.
            save(a.out, versions, rows, runs=runs)


if __name__ == "__main__":
    main()
