"""`mote pack` on the command line: options, settings and recipe say the same, and the summary says what was done."""

import json

import pytest

import mote
from mote.cli import run


def _formats(directory):
    contract = mote.Checkpoint.open(directory).mote
    return {name: (getattr(contract, name).quantizer, getattr(contract, name).group) for name in ("shared", "head")}


def test_options_settings_and_recipe_agree(tiny, tmp_path, capsys):
    tiny("llama").save_pretrained(tmp_path / "dense")
    (tmp_path / "recipe.yaml").write_text("pack: {shared: int4, head: int8, group: 32}\n")
    ways = {
        "options": ["--shared", "int4", "--head", "int8", "--group", "32"],
        "settings": ["--set", "shared=int4", "--set", "head=int8", "--set", "group=32"],
        "recipe": ["--recipe", str(tmp_path / "recipe.yaml")],
        "mixed": ["--recipe", str(tmp_path / "recipe.yaml"), "--set", "group=64", "--group", "32"],
    }
    for name, arguments in ways.items():
        assert run(["pack", str(tmp_path / "dense"), "--out", str(tmp_path / name), *arguments]) == 0
        assert _formats(tmp_path / name) == {"shared": ("int4", 32), "head": ("int8", 32)}
    out = capsys.readouterr().out
    assert "also packed: feed-forward networks int4 per 32, head int8 per 32\n" in out
    assert run(["info", str(tmp_path / "options"), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["formats"]["attention"]["quantizer"] == "none"
    assert run(["verify", str(tmp_path / "options")]) == 0


def test_a_mixture_says_that_its_shared_experts_are_packed(tiny, tmp_path, capsys):
    mote.upcycle(tiny("llama")).save_pretrained(tmp_path / "mixture")
    command = ["pack", str(tmp_path / "mixture"), "--out", str(tmp_path / "out"), "--shared", "int8"]
    assert run(command) == 0
    assert "also packed: shared experts int8 per 64" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--shared", "int5"], ["--group", "48"], ["--attention", "yes"]])
def test_wrong_options_are_one_line(wrong, tiny, tmp_path, capsys):
    tiny("llama").save_pretrained(tmp_path / "dense")
    assert run(["pack", str(tmp_path / "dense"), "--out", str(tmp_path / "out"), *wrong]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
