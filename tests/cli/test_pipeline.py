"""Every stage in a row on a tiny model: the table of steps, the report, and what runs again after a change."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mote.checkpoint.shards import Checkpoint
from mote.cli import run
from mote.errors import MoteError, RecipeError

RECIPES = Path(__file__).parents[2] / "recipes"
TRAINING = "batch_size: 4, log_every: 1, probe_conversations: 2, precision: fp32"


def recipe_text(parts: Path) -> str:
    return f"""
name: tiny
seconds: {{align: 5}}
data: {{skills: {{}}}}
assemble:
  image_size: 56
  connector_width: 32
  dtype: float32
  vision: {{source: {parts / "tower"}}}
  language: {{source: {parts / "language"}}}
align: {{max_steps: 2, {TRAINING}}}
instruct: {{max_steps: 2, {TRAINING}}}
upcycle: {{num_experts: 2}}
experts: {{max_steps: 2, {TRAINING}}}
evaluate: {{dtype: float32, max_tokens: 3, samples: 3}}
"""


@pytest.fixture(scope="module")
def recipe(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(recipe_text(parts), encoding="utf-8")
    return path


@pytest.fixture
def go(recipe: Path, write_mix: Callable[[Path], Path]) -> Callable[..., list[str]]:
    """`go(root, *settings)` runs the recipe with ready pictures in place of drawn ones; the names of what ran.

    until: the last step. drop: sections of the recipe that are left out.
    """

    def run_recipe(root: Path, *settings: str, until: str = "report", drop: tuple[str, ...] = ()) -> list[str]:
        from mote.cli.experiment import read_experiment, steps_of
        from mote.cli.steps import run_steps

        said: list[str] = []
        settings = (*settings, *(f"{section}=null" for section in drop))
        data, *others = steps_of(read_experiment(recipe, settings), recipe, "mote pipeline tiny.yaml")
        steps = [replace(data, run=lambda at: write_mix(at.out)), *others]
        steps = steps[: [step.name for step in steps].index(until) + 1]
        run_steps(root, steps, say=said.append)
        return [step.name for step in steps if any(f"] {step.title}: done in" in line for line in said)]

    return run_recipe


@pytest.mark.timeout(120)
def test_a_recipe_runs_through_and_again_only_what_changed(
    go: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    everything = go(root)
    assert everything[0] == "data"
    assert everything[-1] == "report"
    report: dict[str, Any] = json.loads((root / "report.json").read_text())
    assert set(report) == {"accuracy", "bytes", "seconds", "provenance"}
    assert set(report["accuracy"]) == {"blind", "dense", "mote", "packed"}
    for scores in report["accuracy"].values():
        assert set(scores) == {"color", "counting", "average"}
        for score in scores.values():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert report["accuracy"]["mote"]["average"]["n"] == 12
    size = report["bytes"]
    # Two layers of 3 x 32 x 48 weights in bf16; two routed experts; the shared expert is kept.
    assert size["dense_ffn"] == 2 * 3 * 32 * 48 * 2
    assert size["moe_llava_experts"] == 2 * size["dense_ffn"]
    assert size["mote_experts"] == 3 * size["dense_ffn"]
    assert size["checkpoint"] > size["mote_experts_packed"]
    assert set(report["seconds"]) == set(everything) - {"report"}
    page = (root / "report.html").read_text()
    assert "<script" not in page
    assert page.count("data:image/png;base64,") >= 3
    assert "How many cat ?" in page

    assert go(root) == []
    changed = go(root, "evaluate.max_tokens=2")
    assert changed == [name for name in everything if name.startswith("evaluate")] + ["report"]

    packed = str(root / "packed")
    capsys.readouterr()
    assert run(["info", packed]) == 0
    assert "assemble > train align > train instruct > upcycle" in capsys.readouterr().out
    assert run(["verify", packed]) == 0
    assert "no problem" in capsys.readouterr().out
    assert run(["ask", packed, str(root / "data" / "images" / "20.png"), "What is this ?", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"image", "question", "answer", "finish", "tokens", "seconds"}
    evaluate = ["evaluate", packed, "--data", str(root / "data" / "val.jsonl"), "--set", "dtype=float32"]
    assert run([*evaluate, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["average"]["n"] == 8


@pytest.mark.timeout(180)
def test_a_recipe_that_starts_from_a_file_trains_stage_three_only(
    recipe: Path, go: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run extracts the file, the second starts from it; both evaluate nearly the same dense model."""
    from mote.cli.experiment import read_experiment, steps_of

    # Training is checked elsewhere: the first run stops once the file is there.
    scratch = tmp_path / "scratch"
    kept = "extract={max_bytes: 900000, max_rank: 99, factors: float32, connector: float32}"
    steps = steps_of(read_experiment(recipe, [kept]), recipe, "")
    names = [step.name for step in steps]
    assert names[names.index("instruct") + 1] == "extract"
    assert go(scratch, kept, until="extract") == ["data", "assemble", "align", "instruct", "extract"]
    file, root = scratch / "start.safetensors", tmp_path / "run"
    assert go(scratch, kept, until="extract") == [], "a file that is there is not extracted again"

    ran = go(root, f"start.source={file}", drop=("align", "instruct"))
    assert ran[:4] == ["data", "assemble", "start", "upcycle"]
    assert "experts" in ran
    assert ran[-1] == "report"
    report = json.loads((root / "report.json").read_text())
    assert report["provenance"]["start"]["source"] == str(file)
    assert report["provenance"]["start"]["made_from"]["stages"] == ["assemble", "train align", "train instruct"]
    assert "Stages I and II did not run here" in (root / "report.html").read_text()
    before, after = (Checkpoint.open(folder / "dense") for folder in (scratch, root))
    for name in before.tensors:
        torch.testing.assert_close(before.read(name), after.read(name), rtol=0, atol=1e-5, msg=name)
    assert run(["info", str(root / "packed")]) == 0
    assert "assemble > start > upcycle" in capsys.readouterr().out
    # Another file under the same name is another setting, and nothing that follows is kept.
    assert go(scratch, "extract={max_bytes: 30000}", until="extract") == ["extract"]
    again = go(root, f"start.source={file}", drop=("align", "instruct"), until="upcycle")
    assert again == ["start", "upcycle"]

    # With a section of its own, stage II goes on from the file.
    on = tmp_path / "on"
    settings = (f"start.source={file}", "question_only=true")
    names = ["data", "assemble", "start", "instruct"]
    assert go(on, *settings, drop=("align",), until="instruct") == names
    assert run(["info", str(on / "dense")]) == 0
    assert "assemble > start > train instruct" in capsys.readouterr().out
    experiment = read_experiment(recipe, [*settings, "align=null"])
    assert experiment.instruct is not None
    assert experiment.instruct.max_steps == 2
    parents = {step.name: step.parents for step in steps_of(experiment, recipe, "")}
    assert parents["question_only"] == ("start", "data")
    assert parents["upcycle"] == ("instruct",)


def test_stages_that_a_start_replaces_are_refused_and_absent(recipe: Path, tmp_path: Path) -> None:
    from mote.cli.experiment import read_experiment, steps_of

    with pytest.raises(RecipeError, match=r"start takes the place of stage I, .* so align would do nothing"):
        read_experiment(recipe, ["start.source=package:small"])
    plain = [line for line in recipe_text(tmp_path).splitlines() if not line.startswith(("align", "instruct"))]
    (tmp_path / "r.yaml").write_text("\n".join(plain), encoding="utf-8")
    experiment = read_experiment(tmp_path / "r.yaml", ["start.source=/nowhere/f"])
    with pytest.raises(MoteError, match=r"start /nowhere/f: no such file"):
        steps_of(experiment, tmp_path / "r.yaml", "")
    with pytest.raises(RecipeError, match="so extract and question_only would do nothing"):
        read_experiment(tmp_path / "r.yaml", ["start.source=f", "extract={}", "question_only=true"])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_ship_are_valid(path: Path) -> None:
    from mote.cli.experiment import read_experiment, steps_of

    experiment = read_experiment(path, seed=3)
    assert experiment.experts.seed == 3
    steps = steps_of(experiment, path, "")
    for index, step in enumerate(steps):
        assert set(step.parents) <= {earlier.name for earlier in steps[:index]}
    assert set(experiment.seconds) <= {step.name for step in steps}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("experts.lerning_rate=1", "experts.lerning_rate: unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ("upcycel.num_experts=1", "upcycel: unknown key 'upcycel'; did you mean 'upcycle'?"),
        ("pack.codec=zip", "pack.codec: 'zip' is not one of"),
        ("upcycle.top_k=9", "top_k=9 of num_experts=2"),
        ("evaluate.limit=many", "evaluate.limit: expected a whole number"),
    ],
)
def test_a_wrong_setting_is_one_line(recipe: Path, setting: str, message: str) -> None:
    from mote.cli.experiment import read_experiment

    with pytest.raises(RecipeError) as caught:
        read_experiment(recipe, [setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_section_seed_wins_over_the_recipes(recipe: Path) -> None:
    from mote.cli.experiment import read_experiment

    experiment = read_experiment(recipe, ["experts.seed=7"], seed=5)
    assert (experiment.seed, experiment.align.seed, experiment.experts.seed) == (5, 5, 7)


def test_recipes_hold_no_tab_and_no_trailing_space() -> None:
    for path in RECIPES.glob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if "\t" in line or line != line.rstrip()], path


def test_ctrl_c_is_one_line_and_130(recipe: Path, tmp_path: Path) -> None:
    """In a process of its own, since SIGINT goes to all of it."""
    import signal
    import sys
    import time

    command = [sys.executable, "-c", "from mote.cli import main; main()", "pipeline", str(recipe)]
    command += ["--out", str(tmp_path / "run"), "--set", "data.skills={naming: {train: 100000}}"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A job in the background of a script, as these tests may be, ignores SIGINT, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("[1/12]"), line + process.communicate()[1]
    # Until pictures are drawn: Python itself loses a KeyboardInterrupt that meets a __del__ while torch is imported.
    while not any((tmp_path / "run").rglob("*.png")):
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("interrupted: ")
