"""Without `import mote` an Auto class stops with a message that names it; with it, in either order, it works."""

import os
import subprocess
import sys

import pytest

import mote
from mote.errors import CheckpointError, UnsupportedModelError
from mote.model.guard import guard, guarded_class, unguard

SCRIPT = """
import sys
from transformers import AutoModelForCausalLM

def attempt(directory):
    try:
        return "LOADED " + type(AutoModelForCausalLM.from_pretrained(directory).model.layers[0].mlp).__name__
    except Exception as error:
        return "RAISED " + str(error).replace(chr(10), " ")

print(*map(attempt, sys.argv[1:]), sep=chr(10))

import mote  # after transformers, unlike in every other test

print(*map(attempt, sys.argv[1:]), sep=chr(10))
"""


def test_auto_class_without_mote_names_it_and_works_with_it(tiny, tmp_path):
    model = mote.upcycle(tiny("llama"))
    model.save_pretrained(tmp_path / "upcycled")
    mote.pack(model).save_pretrained(tmp_path / "packed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "upcycled"), str(tmp_path / "packed")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines[:2]:
        assert line.startswith("RAISED")
        assert "mote_lmm" in line
    assert lines[2:] == ["LOADED MoteLlamaMLP"] * 2


def test_guard_changes_what_is_written_and_can_be_undone(tiny):
    config = tiny("llama").config
    original = type(config)
    guard(config)
    guard(config)
    assert isinstance(config, original)
    assert config.model_type == "llama"
    assert (config.to_dict()["model_type"], config.to_dict()["base_model_type"]) == ("mote_lmm", "llama")
    unguard(config)
    assert type(config) is original


def test_damaged_config_is_an_error():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with pytest.raises(CheckpointError, match="base_model_type"):
        CONFIG_MAPPING["mote_lmm"].from_dict({"model_type": "mote_lmm"})
    with pytest.raises(UnsupportedModelError, match="no_such_model"):
        guarded_class("no_such_model")
