"""`mote quantize` on the command line."""

import json

import pytest

import mote
from mote.cli import run


def test_the_whole_verb_with_pictures(checkpoint, write_mix, tmp_path, capsys):
    mix = write_mix(tmp_path / "mix")
    mixture = mote.upcycle(checkpoint, tmp_path / "mixture", num_experts=2)
    command = ["quantize", str(mixture), "--out", str(tmp_path / "out"), "--method", "gptq", "--asymmetric"]
    command += ["--attention", "int8", "--group", "32", "--calibration", str(mix), "--samples", "9", "--seed", "3"]
    assert run(command) == 0
    out = capsys.readouterr().out
    assert "made by" in out
    assert "quantize" in out
    written = mote.Checkpoint.open(tmp_path / "out")
    assert (written.mote.shared.quantizer, written.mote.shared.symmetric) == ("int4", False)
    assert written.mote.attention.quantizer == "int8"
    assert written.lineage.config["method"] == "gptq"
    assert written.lineage.seed == 3
    report = json.loads((tmp_path / "out" / "quantize.json").read_text())
    assert report["calibration"]["samples"] == report["calibration"]["pictures"] == 9
    assert run(["verify", str(tmp_path / "out")]) == 0
    answer = mote.load(tmp_path / "out").ask(mix / "images" / "0.png", "What is this ?", max_new_tokens=2)
    assert isinstance(answer, str)


def test_options_settings_and_python_agree(checkpoint, tmp_path):
    options = ["--shared", "int3", "--method", "hqq", "--asymmetric", "--group", "32"]
    assert run(["quantize", str(checkpoint), "--out", str(tmp_path / "one"), *options]) == 0
    settings = ["--set", "shared=int3", "--set", "method=hqq", "--set", "symmetric=false", "--set", "group=32"]
    assert run(["quantize", str(checkpoint), "--out", str(tmp_path / "two"), *settings]) == 0
    three = mote.quantize(checkpoint, tmp_path / "three", shared="int3", method="hqq", symmetric=False, group=32)
    hashes = [mote.Checkpoint.open(tmp_path / name).lineage.shards for name in ("one", "two", "three")]
    assert hashes[0] == hashes[1] == hashes[2]
    assert three == tmp_path / "three"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--method", "magic"], "method"),
        (["--method", "hqq"], "--asymmetric"),
        (["--method", "gptq"], "--calibration"),
        (["--shared", "int5"], "shared"),
        (["--method", "awq", "--calibration", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_wrong_options_are_one_line(wrong, says, checkpoint, tmp_path, capsys):
    assert run(["quantize", str(checkpoint), "--out", str(tmp_path / "out"), *wrong]) == 1
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1
    assert says in err
    assert not (tmp_path / "out").exists()
    with pytest.raises(mote.MoteError):
        mote.quantize(checkpoint, tmp_path / "out", methid="rtn")
