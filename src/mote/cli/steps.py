"""Running an ordered table of steps so that what is done is not done again.

A step is done when its output holds a record (`step.json`) whose key is

    key = sha256(step, version, resolved config, ids of its parents' outputs)

and as many files and bytes as it had then. A changed setting changes the key of its step and, through the
ids, of all that follow; anything else is skipped. A step's stage writes its output under another name and
renames it, and the record is written last, so a run that is killed at any moment goes on where it was. What
a stage keeps of a half-done step is in a work folder named by the key: it is only ever resumed with the
settings that it was written with.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mote import __version__
from mote.checkpoint.atomic import write_file
from mote.cli.output import human_seconds
from mote.errors import RecipeError
from mote.recipe import to_plain

RUN_FILE = "pipeline.json"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a step works: the run's directory, its output in it, its parents' outputs by step name, and a folder for
    half-done work.

    `force` says that the output's name is taken by an earlier result which may be replaced. `seconds` is
    what the steps before took.
    """

    root: Path
    out: Path
    parents: Mapping[str, Path]
    work: Path
    force: bool
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One line of the table.

    name: key in `seconds` of the report. title: what the progress line says. output: path under the run's
    directory; a directory, or a file when it has a suffix. parents: names of earlier steps. config:
    resolved settings. seconds: what the recipe expects it to take, for the estimate of the time left.
    """

    name: str
    title: str
    output: str
    config: Any
    run: Callable[[Place], object]
    parents: tuple[str, ...] = ()
    seconds: float = 0.0


def run_steps(root: Path, steps: Sequence[Step], *, say: Callable[[str], None] = print) -> dict[str, float]:
    """Runs in order what is not done yet under `root`; returns the seconds that each step took when it ran.

    Raises RecipeError if `root` holds something that no pipeline put there.
    """
    _claim(root)
    keys = _Keys(root)
    seconds: dict[str, float] = {}
    started, left = time.monotonic(), sum(step.seconds for step in steps)
    for number, step in enumerate(steps, 1):
        out, key = root / step.output, keys.of(step)
        record = _finished(out, key)
        head = f"[{number}/{len(steps)}] {step.title}"
        if record is None:
            spent = human_seconds(time.monotonic() - started)
            say(f"{head}: {spent} so far, about {human_seconds(left)} left")
            record = _run(step, root, key, keys, seconds)
            say(f"{head}: done in {human_seconds(record['seconds'])}")
        else:
            say(f"{head}: done before, in {human_seconds(record['seconds'])}")
        seconds[step.name] = float(record["seconds"])
        left -= step.seconds
        keys.finished(step, out, key)
    return seconds


class _Keys:
    """Keys of the steps so far, and the ids of their outputs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outputs: dict[str, Path] = {}
        self.ids: dict[str, str] = {}

    def of(self, step: Step) -> str:
        parts = {
            "step": step.name,
            "version": __version__,
            "config": to_plain(step.config),
            "parents": {name: self.ids[name] for name in step.parents},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def finished(self, step: Step, out: Path, key: str) -> None:
        """A checkpoint's id is the hash of its lineage file; any other output is named by its key."""
        lineage = out / "mote.json"
        self.outputs[step.name] = out
        self.ids[step.name] = hashlib.sha256(lineage.read_bytes()).hexdigest() if lineage.is_file() else key


def _run(step: Step, root: Path, key: str, keys: _Keys, seconds: Mapping[str, float]) -> dict[str, Any]:
    out, work = root / step.output, root / ".work" / f"{step.name}-{key[:16]}"
    work.mkdir(parents=True, exist_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    before = _seconds_before(work)
    began = time.monotonic()
    _record_path(out).unlink(missing_ok=True)
    place = Place(
        root=root,
        out=out,
        parents={name: keys.outputs[name] for name in step.parents},
        work=work,
        force=out.exists(),
        seconds=dict(seconds),
    )
    try:
        step.run(place)
    except BaseException:
        write_file(work / "seconds", f"{before + time.monotonic() - began:.3f}")
        raise
    files, size = _contents(out)
    record = {
        "schema": 1,
        "step": step.name,
        "key": key,
        "config": to_plain(step.config),
        "seconds": round(before + time.monotonic() - began, 3),
        "files": files,
        "bytes": size,
    }
    write_file(_record_path(out), json.dumps(record, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(work, ignore_errors=True)
    return record


def _claim(root: Path) -> None:
    """Marks `root` as a pipeline's, so that a step may replace what an earlier run left there."""
    if root.exists() and not root.is_dir():
        raise RecipeError(f"{root}: is a file; name a directory with --out")
    if root.is_dir() and any(root.iterdir()) and not (root / RUN_FILE).is_file():
        raise RecipeError(f"{root}: holds files that no pipeline wrote; name a new or empty directory with --out")
    root.mkdir(parents=True, exist_ok=True)
    if not (root / RUN_FILE).is_file():
        write_file(root / RUN_FILE, json.dumps({"schema": 1, "version": __version__}) + "\n")


def _record_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.step.json") if out.suffix else out / "step.json"


def _finished(out: Path, key: str) -> dict[str, Any] | None:
    """The record of a step that is done with this very key and whose output is still whole, else None."""
    try:
        record = json.loads(_record_path(out).read_text(encoding="utf-8"))
        whole = record["key"] == key and (record["files"], record["bytes"]) == _contents(out)
        return dict(record) if whole and float(record["seconds"]) >= 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _contents(out: Path) -> tuple[int, int]:
    """Number and bytes of the files of an output, without its own record; of a file, with all of the same stem."""
    inside = out.parent.glob(f"{out.stem}.*") if out.suffix else out.rglob("*")
    paths = [path for path in inside if path != _record_path(out)]
    sizes = [path.stat().st_size for path in paths if path.is_file()]
    return len(sizes), sum(sizes)


def _seconds_before(work: Path) -> float:
    """Seconds that interrupted runs of this step, with these settings, have already spent."""
    try:
        return float((work / "seconds").read_text())
    except (OSError, ValueError):
        return 0.0
