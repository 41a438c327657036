"""Input that cannot be used, as a user meets it: one line on stderr that names the place, exit code 1."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mote.cli import run

ROW = {
    "id": "1",
    "image": "p.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat ?"}, {"from": "gpt", "value": "red"}],
}


@pytest.fixture
def rejected(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`rejected(*arguments)` runs a verb that must fail with exit code 1 and returns its one line."""

    def verb(*arguments: str | Path) -> str:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        errors = capsys.readouterr().err.strip().splitlines()
        assert code == 1, errors
        assert len([line for line in errors if line.startswith("error: ")]) == 1, errors
        assert "Traceback" not in "\n".join(errors)
        return errors[-1]

    return verb


def test_pictures_and_questions(rejected: Callable[..., str], checkpoint: Path, tmp_path: Path) -> None:
    assert "no such file" in rejected("ask", checkpoint, tmp_path / "gone.png", "What ?")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    assert "cut.png" in rejected("ask", checkpoint, tmp_path / "cut.png", "What ?")
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(ROW) + "\n{not json\n", encoding="utf-8")
    assert "rows.jsonl:2: not JSON" in rejected("evaluate", checkpoint, "--data", data)
    empty = {**ROW, "conversations": [ROW["conversations"][0], {"from": "gpt", "value": " "}]}
    data.write_text(json.dumps(empty), encoding="utf-8")
    assert "rows.jsonl:1: message 2 is an empty answer" in rejected("evaluate", checkpoint, "--data", data)


def test_all_bad_rows_are_listed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("{\n" + json.dumps({**ROW, "image": "gone.png"}) + "\n[]\n", encoding="utf-8")
    assert run(["data", "validate", str(data)]) == 1
    said = capsys.readouterr().out
    assert [f"rows.jsonl:{line}:" in said for line in (1, 2, 3)] == [True, True, True]
    assert run(["data", "validate", str(data), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) >= 3


def test_states_that_a_verb_does_not_accept(rejected: Callable[..., str], checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "dense" in rejected("pack", checkpoint, "--out", out)
    trained = rejected("train", checkpoint, "--stage", "experts", "--data", tmp_path, "--out", out)
    assert "mote upcycle" in trained
    assert run(["upcycle", str(checkpoint), "--out", str(out), "--set", "num_experts=2"]) == 0
    assert "upcycled" in rejected("upcycle", out, "--out", tmp_path / "again")
    assert str(out) in rejected("upcycle", checkpoint, "--out", out)
    assert not (tmp_path / "again").exists()


def test_a_damaged_checkpoint(rejected: Callable[..., str], checkpoint: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in checkpoint.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for verb in (
        ("info", damaged),
        ("ask", damaged, damaged / "x.png", "?"),
        ("upcycle", damaged, "--out", tmp_path / "o"),
    ):
        assert "damaged" in rejected(*verb)
    assert run(["verify", str(damaged)]) == 1


def test_settings(rejected: Callable[..., str], checkpoint: Path, tmp_path: Path) -> None:
    upcycle = ("upcycle", checkpoint, "--out", tmp_path / "out", "--set")
    assert "did you mean 'num_experts'" in rejected(*upcycle, "num_expert=2")
    assert "expected a whole number" in rejected(*upcycle, "num_experts=two")
    assert "--set num_experts" in rejected(*upcycle, "num_experts")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: x\nupcycle: {top_k: 2}\n", encoding="utf-8")
    assert run(["upcycle", str(checkpoint), "--recipe", str(recipe), "--out", str(tmp_path / "two"), "--json"]) == 0
    config = json.loads((tmp_path / "two" / "config.json").read_text())["quantization_config"]
    assert config["top_k"] == 2
    assert "has no section 'pack'" in rejected("pack", tmp_path / "two", "--recipe", recipe, "--out", tmp_path / "p")
