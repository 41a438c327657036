"""A run that stops anywhere goes on to the very numbers of one that never stopped."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from mote.checkpoint.shards import Checkpoint
from mote.errors import MoteError, TrainingError
from mote.train import TrainConfig
from mote.train.run import train
from mote.train.snapshots import MARK, Snapshots
from mote.train.trainer import WEIGHTS

Settings = Callable[..., TrainConfig]


def trace(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weights(out: Path) -> dict[str, torch.Tensor]:
    opened = Checkpoint.open(out)
    return {name: opened.read(name) for name in opened.tensors}


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while step `step` is computed."""
    original = Snapshots.on_step_end

    def on_step_end(self: Snapshots, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(Snapshots, "on_step_end", on_step_end)


@pytest.fixture
def whole(upcycled: Path, data: Path, settings: Settings, tmp_path: Path) -> Path:
    """Two epochs of four steps, never stopped; a row every third step."""
    config = settings(epochs=2.0, log_every=3, probe_conversations=4)
    return train(upcycled, tmp_path / "whole", config, stage="experts", data=data)


@pytest.mark.parametrize("step", [2, 4, 5, 8])
def test_resume_repeats_the_uninterrupted_run_exactly(
    step: int, whole: Path, upcycled: Path, data: Path, settings: Settings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config, out = settings(epochs=2.0, log_every=3, probe_conversations=4), tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_after(step, patch)
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step}"):
            train(upcycled, out, config, stage="experts", data=data)
    assert not out.exists()
    assert (tmp_path / "out.work" / f"checkpoint-{step}" / MARK).is_file()
    train(upcycled, out, config, stage="experts", data=data)
    assert trace(out) == trace(whole)
    assert same(out, whole)
    assert json.loads((out / "training.json").read_text()) == json.loads((whole / "training.json").read_text())
    assert not (tmp_path / "out.work").exists()


def test_the_same_seed_gives_the_same_losses_and_another_does_not(
    whole: Path, upcycled: Path, data: Path, settings: Settings, tmp_path: Path
) -> None:
    config = settings(epochs=2.0, log_every=3, probe_conversations=4)
    again = train(upcycled, tmp_path / "again", config, stage="experts", data=data)
    assert trace(again) == trace(whole)
    assert same(again, whole)
    other = train(upcycled, tmp_path / "other", settings(epochs=2.0, log_every=3, seed=1), stage="experts", data=data)
    assert trace(other) != trace(whole)


def test_a_snapshot_that_a_kill_cut_short_is_ignored(
    whole: Path, upcycled: Path, data: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = settings(epochs=2.0, log_every=3, probe_conversations=4), tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train(upcycled, out, config, stage="experts", data=data)
    cut = tmp_path / "out.work" / "checkpoint-6"
    cut.mkdir()
    (cut / WEIGHTS).write_bytes(b"half of it")
    train(upcycled, out, config, stage="experts", data=data)
    assert trace(out) == trace(whole)


PROGRAM = """
import sys, json, torch
from pathlib import Path
from mote.train import TrainConfig
from mote.train.run import train
from mote.train.snapshots import Snapshots
from mote.cli.failures import report

torch.set_num_threads(1)
checkpoint, out, data, config, stop = sys.argv[1:]
original = Snapshots.on_step_end


def slow(self, args, state, control, **kwargs):
    if state.global_step == int(stop):
        print("here", flush=True)
        sys.stdin.read(1)
    return original(self, args, state, control, **kwargs)


Snapshots.on_step_end = slow
try:
    train(Path(checkpoint), Path(out), TrainConfig(**json.loads(config)), stage="experts", data=Path(data))
except BaseException as error:
    sys.exit(report(error))
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *map(str, arguments)]
    # Other libraries' bars are off, as the command line has them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TQDM_DISABLE": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().endswith("here"):
            return process
    raise AssertionError(process.communicate()[1])


@pytest.mark.timeout(240)  # two processes that load torch, on a machine that may be busy
def test_ctrl_c_saves_and_says_so_in_one_line_and_a_kill_loses_nothing(
    upcycled: Path, data: Path, settings: Settings, tmp_path: Path
) -> None:
    config, out = settings(epochs=2.0), tmp_path / "out"
    arguments = (upcycled, out, data, json.dumps(asdict(config)))
    process = start(*arguments, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)  # the handler runs before the read is taken up again
    _, errors = process.communicate("\n", timeout=120)
    assert process.returncode == 130
    said = [line for line in errors.strip().splitlines() if "━" not in line]  # all but progress bars
    assert len(said) == 1, errors
    assert "Traceback" not in errors
    snapshot = tmp_path / "out.work" / "checkpoint-2"
    assert (snapshot / MARK).is_file()

    process = start(*arguments, 5)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert (snapshot / MARK).is_file()

    torch.set_num_threads(1)
    train(upcycled, out, config, stage="experts", data=data)
    whole = train(upcycled, tmp_path / "whole", config, stage="experts", data=data)
    assert trace(out) == trace(whole)
    assert same(out, whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_a_snapshot_is_neither_mixed_up_nor_thrown_away(
    upcycled: Path, data: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(upcycled, out, settings(), stage="experts", data=data)
    with pytest.raises(TrainingError, match="other settings or data"):
        train(upcycled, out, settings(learning_rate=1e-3), stage="experts", data=data)
    with pytest.raises(TrainingError, match="stopped after step 2 of 4; --resume goes on"):
        train(upcycled, out, settings(), stage="experts", data=data, resume=False)
    train(upcycled, out, settings(save_minutes=1.0), stage="experts", data=data)
    whole = train(upcycled, tmp_path / "whole", settings(), stage="experts", data=data, resume=False)
    assert trace(out) == trace(whole)


def test_snapshots_are_taken_by_the_clock_and_only_the_newest_stays(
    upcycled: Path, data: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    original = Snapshots.on_save

    def on_save(self: Snapshots, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control = original(self, args, state, control, **kwargs)
        seen.append(sorted(p.name for p in Path(args.output_dir).glob("checkpoint-*")))
        return control

    monkeypatch.setattr(Snapshots, "on_save", on_save)
    train(upcycled, tmp_path / "out", settings(save_minutes=1e-9), stage="experts", data=data)
    assert seen == [["checkpoint-1"], ["checkpoint-2"], ["checkpoint-3"], ["checkpoint-4"]]


def test_a_full_disk_is_one_line_and_leaves_everything_as_it_was(
    upcycled: Path, data: Path, settings: Settings, tmp_path: Path
) -> None:
    out = train(upcycled, tmp_path / "out", settings(), stage="experts", data=data)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    features = tmp_path / "features"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for minutes in (1e-9, 0.0):  # the first write that fails is a snapshot's, then the result's
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
        try:
            with pytest.raises(MoteError, match=r"cannot be written: .*free space") as caught:
                train(
                    upcycled, out, settings(save_minutes=minutes, seed=1), stage="experts", data=data,
                    features=features, force=True,
                )  # fmt: skip
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert len(str(caught.value).splitlines()) == 1
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        assert not list(tmp_path.glob("*.partial-*"))
