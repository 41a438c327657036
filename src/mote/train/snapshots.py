"""Resumable snapshots of a run: when one is taken, when it counts as whole, and which run it belongs to."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT, signal
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from mote.checkpoint.atomic import write_error, write_file
from mote.errors import TrainingError

MARK = "complete.json"
"""Written last into a snapshot: one without it was cut short and is not resumed from."""


class Snapshots(TrainerCallback):
    """Saves every so many minutes and at Ctrl-C, marks a snapshot when it is whole, and deletes the one before.

    run: key of the run's settings and data; a snapshot is resumed from by the same run only. interrupted: set by
    `finish_step_on_interrupt`; the step under way is finished and saved first.
    """

    def __init__(self, minutes: float, run: str) -> None:
        self._seconds = minutes * 60 or float("inf")
        self._last = time.monotonic()
        self._run = run
        self.interrupted = False

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        elif time.monotonic() - self._last > self._seconds:
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> Any:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        try:
            for path in folder.iterdir():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        except OSError as error:
            raise write_error(folder, error) from None
        mark = {"run": self._run, "step": state.global_step, "steps": state.max_steps}
        write_file(folder / MARK, json.dumps(mark))
        for older in snapshots(folder.parent):
            if older != folder:
                shutil.rmtree(older)
        self._last = time.monotonic()
        return control


def snapshots(work: Path) -> list[Path]:
    """Snapshot folders under `work`, oldest first, whole or not."""
    found = [p for p in work.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def newest_snapshot(work: Path, run: str, *, resume: bool, force: bool) -> Path | None:
    """The newest whole snapshot under `work`; those that a kill cut short are deleted.

    Raises TrainingError for a snapshot of another run than `run`, and for any snapshot without `resume`: hours of work
    are not thrown away because an option was forgotten. With `force` and without `resume` they are deleted.
    """
    whole = []
    for folder in snapshots(work):
        if (folder / MARK).is_file() and (resume or not force):
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    if not whole:
        return None
    mark = read_mark(whole[-1])
    if mark["run"] != run:
        raise TrainingError(
            f"{whole[-1]}: snapshot of a run with other settings or data; run with those again, or delete {work}"
        )
    if not resume:
        raise TrainingError(
            f"{whole[-1]}: an interrupted run stopped after step {mark['step']} of {mark['steps']}; --resume goes on "
            "from there, --force starts anew"
        )
    return whole[-1]


def read_mark(snapshot: Path) -> dict[str, Any]:
    """{"run", "step", "steps"} of a whole snapshot. Raises TrainingError if it is damaged."""
    try:
        mark = json.loads((snapshot / MARK).read_text(encoding="utf-8"))
        return {"run": str(mark["run"]), "step": int(mark["step"]), "steps": int(mark["steps"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise TrainingError(f"{snapshot}: damaged; delete it to start anew") from None


@contextmanager
def finish_step_on_interrupt(guard: Snapshots) -> Iterator[None]:
    """First Ctrl-C: finish the step, save, stop. A second one stops at once."""

    def ask(signum: int, frame: object) -> None:
        if guard.interrupted:
            raise KeyboardInterrupt
        guard.interrupted = True

    try:
        before = signal(SIGINT, ask)
    except ValueError:  # only the main thread may set handlers; elsewhere Ctrl-C is somebody else's to handle
        yield
        return
    try:
        yield
    finally:
        signal(SIGINT, before)
