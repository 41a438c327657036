"""`mote bench` and `mote ask` on a tiny checkpoint: what they say, and in which form."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mote.cli import run

PARTS = {"norms", "projections", "attention", "router", "experts", "head", "native_rest", "python"}


def test_bench_in_the_vocabulary_of_all_benchmarks(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", str(checkpoint), "--prompt", "20", "--tokens", "4", "--repeats", "2", "--compare"]
    assert run([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"schema", "machine", "versions", "git", "rows", "figures", "compare"}
    assert [row["what"] for row in report["rows"]] == ["open", "resident", "prefill", "decode"]
    for row in report["rows"]:
        assert row["shape"] == {"H": 32, "F": 48, "L": 2, "E": 0}
        assert row["ours"]["min"] <= row["ours"]["median"] <= row["ours"]["max"]
    figures = report["figures"]
    assert set(figures["parts"]) == PARTS
    assert sum(figures["parts"].values()) == pytest.approx(1 / report["rows"][3]["ours"]["median"], rel=2)
    assert figures["bandwidth"]["bytes_per_second"] > 1e8
    assert report["compare"]["agreement"] > 0.9
    assert report["compare"]["flip_rate"] == 0
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("decode after 20 tokens") for line in lines)


def test_bench_compares_on_questions_with_pictures(
    checkpoint: Path, write_mix: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mix(tmp_path / "mix")
    questions = tmp_path / "mix" / "test.jsonl"
    arguments = ["bench", str(checkpoint), "--prompt", "8", "--tokens", "2", "--repeats", "1", "--kv", "f32", "--json"]
    assert run([*arguments, "--data", str(questions), "--limit", "5"]) == 0
    found = json.loads(capsys.readouterr().out)["compare"]
    assert found["texts"] == 5
    assert found["first_agreement"] == found["agreement"] == 1
    assert found["largest_error"] < 1e-4


def test_bench_refuses_what_it_cannot_measure(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(checkpoint), "--kv", "int3"]) == 1
    assert "use bf16 or f32" in capsys.readouterr().err
    assert run(["bench", str(checkpoint), "--tokens", "100000"]) == 1
    assert "decode less" in capsys.readouterr().err


def test_ask_says_where_its_time_went(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    arguments = ["ask", str(checkpoint), str(tmp_path / "red.png"), "What is this ?", "--max-tokens", "3"]
    assert run([*arguments, "--json", "--temperature", "1", "--seed", "2"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["seconds"]) == {"start", "imports", "load", "tower_loading", "seeing", "prefill", "decode"}
    assert run([*arguments, "--times"]) == 0
    said = capsys.readouterr().err
    assert "tower loading" in said
    assert "s from command to last word" in said
