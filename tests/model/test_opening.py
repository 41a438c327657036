"""A checkpoint from a stranger: what does not fit is named, and nothing that it brings is run or fetched."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import mote
from mote.errors import CheckpointError
from mote.model.opening import open_model, open_processor

PICTURE_TOKEN = 98


@pytest.fixture
def dense(tiny: Callable[..., Any], processor: Any, tmp_path: Path) -> Path:
    tiny("aya_vision").save_pretrained(tmp_path / "dense")
    processor.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def change(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


def test_it_opens_what_fits(dense: Path, tmp_path: Path) -> None:
    for directory in (dense, mote.pack(mote.upcycle(dense, tmp_path / "up"), tmp_path / "packed")):
        model = open_model(directory)
        assert open_processor(directory, model).tokenizer.convert_ids_to_tokens(PICTURE_TOKEN) == "<image>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"num_hidden_layers": 3}, "lacks 9 tensors that config.json asks for, such as"),
        ({"num_hidden_layers": 1}, "holds 9 tensors that config.json has no place for, such as"),
        ({"num_hidden_layers": 10**9}, "says 1000000000 layers"),
        ({"intermediate_size": 64}, r"is \[(52, 36|36, 52)\], config.json asks for \[(64, 36|36, 64)\]"),
        ({"vocab_size": 10**9}, "describes 36,0.* parameters, the files hold"),
        ({"hidden_size": -1}, "cannot build this model"),
        ({"attn_implementation": "owner/kernel"}, "'owner/kernel' is code on a hub"),
    ],
)
def test_a_config_of_another_model_is_refused(dense: Path, text: dict[str, Any], message: str) -> None:
    config = json.loads((dense / "config.json").read_text())
    change(dense / "config.json", text_config={**config["text_config"], **text})
    with pytest.raises(CheckpointError, match=message):
        open_model(dense)


def test_a_tensor_that_is_not_there_is_not_made_up(dense: Path) -> None:
    tensors = load_file(dense / "model.safetensors")
    gone = next(name for name in tensors if "layers.1.self_attn.k_proj" in name)
    del tensors[gone]
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 tensors"):
        open_model(dense)


def test_an_adapter_is_not_followed(dense: Path, tmp_path: Path) -> None:
    (dense / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "other")}))
    with pytest.raises(CheckpointError, match="does not follow"):
        open_model(dense)


def test_files_of_processor_and_tokenizer(dense: Path) -> None:
    model = open_model(dense)
    whole = (dense / "tokenizer.json").read_text()
    (dense / "tokenizer.json").write_text(whole[:300])
    with pytest.raises(CheckpointError, match="no usable processor or tokenizer"):
        open_processor(dense, model)
    (dense / "tokenizer.json").write_text(whole.replace('"What": 7', '"What": 700'))
    with pytest.raises(CheckpointError, match="it has token 700, the model 99 embeddings"):
        open_processor(dense, model)
    (dense / "tokenizer.json").write_text(whole)
    change(dense / "generation_config.json", eos_token_id="the end")
    with pytest.raises(CheckpointError, match="is no token id"):
        open_model(dense)


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"}}),
        ("tokenizer_config.json", {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
        ("processor_config.json", {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.Evil"}}),
    ],
)
def test_code_of_a_checkpoint_never_runs(
    dense: Path, monkeypatch: pytest.MonkeyPatch, file: str, keys: dict[str, Any]
) -> None:
    canary = dense / "canary"
    (dense / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    change(dense / file, trust_remote_code=True, **keys)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to whatever is asked
    with contextlib.suppress(CheckpointError):
        open_processor(dense, open_model(dense))
    assert not canary.exists()
