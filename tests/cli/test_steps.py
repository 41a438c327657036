"""The runner of steps: what is done is skipped, what changed runs again with all that follows."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mote.cli.steps import Place, Step, run_steps
from mote.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Config:
    value: int = 0


class Bench:
    """Three steps in a chain, with a file as the last output; `ran` lists what ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.broken: Callable[[Place], None] | None = None

    def steps(self, a: int = 0, b: int = 0, c: int = 0) -> list[Step]:
        def make(name: str) -> Callable[[Place], None]:
            def run(place: Place) -> None:
                self.ran.append(name)
                if name == "b" and self.broken is not None:
                    self.broken(place)
                if place.out.suffix:
                    place.out.write_text(json.dumps(sorted(place.seconds)))
                    return
                place.out.mkdir(exist_ok=place.force)
                (place.out / "data").write_text(name)

            return run

        return [
            Step(name="a", title="first", output="a", config=Config(value=a), run=make("a"), seconds=60),
            Step(
                name="b",
                title="second",
                output="deep/b",
                config=Config(value=b),
                run=make("b"),
                parents=("a",),
            ),
            Step(
                name="c",
                title="third",
                output="c.json",
                config=Config(value=c),
                run=make("c"),
                parents=("b",),
            ),
        ]

    def go(self, root: Path, **values: int) -> list[str]:
        self.ran.clear()
        self.said: list[str] = []
        run_steps(root, self.steps(**values), say=self.said.append)
        return self.ran


def test_all_run_once_and_progress_is_said(tmp_path: Path) -> None:
    bench, root = Bench(), tmp_path / "run"
    assert bench.go(root) == ["a", "b", "c"]
    assert bench.said[0] == "[1/3] first: 0 s so far, about 1 min 00 s left"
    assert bench.said[2].startswith("[2/3] second: 0 s so far, about 0 s left")
    assert bench.go(root) == []
    assert bench.said[1].startswith("[2/3] second: done before")
    assert json.loads((root / "c.json").read_text()) == ["a", "b"]


def test_a_changed_setting_runs_its_step_and_what_follows(tmp_path: Path) -> None:
    bench = Bench()
    bench.go(tmp_path / "run")
    assert bench.go(tmp_path / "run", b=1) == ["b", "c"]
    assert bench.go(tmp_path / "run", b=1, c=2) == ["c"]
    assert bench.go(tmp_path / "run", a=1, b=1, c=2) == ["a", "b", "c"]


def test_a_new_parent_with_the_same_settings_runs_what_follows(tmp_path: Path) -> None:
    """A checkpoint is named by its lineage, so that training again with other results is noticed."""
    bench, root = Bench(), tmp_path / "run"
    bench.go(root)
    (root / "a" / "mote.json").write_text("{}")
    record = json.loads((root / "a" / "step.json").read_text())
    (root / "a" / "step.json").write_text(json.dumps({**record, "files": 2, "bytes": record["bytes"] + 2}))
    assert bench.go(root) == ["b", "c"]


def test_an_output_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    bench, root = Bench(), tmp_path / "run"
    bench.go(root)
    (root / "a" / "data").unlink()
    assert bench.go(root) == ["a"]
    (root / "c.json").write_text("")
    assert bench.go(root) == ["c"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x")])
def test_an_interrupted_step_keeps_its_work_and_its_seconds(tmp_path: Path, error: BaseException) -> None:
    bench, root = Bench(), tmp_path / "run"

    def stop(place: Place) -> None:
        (place.work / "snapshot").write_text("half")
        raise error

    bench.broken = stop
    with pytest.raises(type(error)):
        bench.go(root)
    assert bench.ran == ["a", "b"]
    (left,) = (root / ".work").iterdir()
    (left / "seconds").write_text("100.0")
    found: list[str] = []
    bench.broken = lambda place: found.append((place.work / "snapshot").read_text())
    assert bench.go(root) == ["b", "c"]
    assert found == ["half"]
    assert not list((root / ".work").iterdir())
    assert json.loads((root / "deep/b/step.json").read_text())["seconds"] >= 100


def test_half_done_work_of_other_settings_is_not_used(tmp_path: Path) -> None:
    bench, root = Bench(), tmp_path / "run"

    def stop(place: Place) -> None:
        (place.work / "snapshot").write_text("half")
        raise KeyboardInterrupt

    bench.broken = stop
    with pytest.raises(KeyboardInterrupt):
        bench.go(root)
    seen: list[bool] = []
    bench.broken = lambda place: seen.append((place.work / "snapshot").exists())
    bench.go(root, b=7)
    assert seen == [False]


def test_a_directory_that_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").write_text("x")
    with pytest.raises(RecipeError, match="holds files that no pipeline wrote"):
        Bench().go(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecipeError, match="is a file"):
        Bench().go(tmp_path / "file")
    assert (tmp_path / "a" / "precious").read_text() == "x"
