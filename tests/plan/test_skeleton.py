"""Where shapes are read, and what is said of files that hold none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mote.errors import PlanError, UnsupportedModelError
from mote.plan import known
from mote.plan.choice import Choice
from mote.plan.measure import Use, measure
from mote.plan.skeleton import image_tokens, open_skeleton

SHAPE = known.table("models")["qwen2.5-0.5b"]


def write(folder: Path, config: Any) -> str:
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return str(path)


def test_a_known_name_a_file_and_a_folder_are_one_model(tmp_path: Path) -> None:
    text = {key: value for key, value in SHAPE.items() if key != "vision"}
    path = write(tmp_path, text)
    by_file, by_folder = open_skeleton(path), open_skeleton(str(tmp_path))
    by_name = open_skeleton("Qwen2.5-0.5B", vision="none")
    assert by_file.tensors == by_folder.tensors == by_name.tensors
    assert (by_name.hidden_size, by_name.ffn_size, by_name.layers, by_name.image_tokens) == (896, 4864, 24, 0)
    seeing = open_skeleton(path, vision="siglip-so400m-384")
    assert seeing.tensors == open_skeleton("qwen2.5-0.5b").tensors
    assert open_skeleton(write(tmp_path, known.model_config("qwen2.5-0.5b")), vision="none").tensors == by_name.tensors


def test_a_checkpoints_headers_count_as_they_are(dense: Callable[..., Path]) -> None:
    folder = dense("llava")
    found = open_skeleton(str(folder))
    assert found.source == "the headers of its files"
    assert {tensor.dtype for tensor in found.tensors} == {"BF16"}
    assert found.image_tokens == 4
    assert open_skeleton(str(folder), vision="none").image_tokens == 0


def test_the_dtype_of_a_config_counts(tmp_path: Path) -> None:
    half = open_skeleton(write(tmp_path, {**SHAPE, "torch_dtype": "float16"}))
    full = open_skeleton(write(tmp_path, {**SHAPE, "dtype": "float32"}))
    assert sum(t.nbytes for t in full.tensors) == 2 * sum(t.nbytes for t in half.tensors)


def test_a_family_of_no_table_is_built_by_transformers(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {"model_type": "olmo2", **sizes, "num_key_value_heads": 2, "vocab_size": 50}
    found = open_skeleton(write(tmp_path, config))
    assert "transformers" in found.source
    assert (found.hidden_size, found.ffn_size, found.layers) == (32, 64, 2)


def test_a_tower_for_pictures_of_any_size_counts_though_their_tokens_do_not(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "vocab_size": 200_000, "tie_word_embeddings": True}
    eyes = {"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
    eyes |= {"patch_size": 14, "spatial_merge_size": 2, "fullatt_block_indexes": [0]}
    path = write(tmp_path, {"model_type": "qwen2_5_vl", **text, "text_config": text, "vision_config": eyes})
    found = open_skeleton(path)
    assert (found.eyes, found.image_tokens) == (True, 0)
    tower = measure(found, Choice()).components["vision_tower"]
    assert tower > 0
    assert measure(found, Choice(), Use(bf16=False)).resident.pictures >= 2 * tower
    assert measure(found, Choice(), Use(images=0)).resident.pictures == 0
    with pytest.raises(UnsupportedModelError, match="no vision tower to pack; looked for layers with"):
        measure(found, Choice(tower="int8"))
    # 448 / 14 / 2 squared
    assert open_skeleton(path, image_size=448).image_tokens == 256
    with pytest.raises(PlanError, match="27 pixels is smaller than a patch of 28"):
        open_skeleton(path, image_size=27)


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [("siglip-so400m-384", 0, 729), ("clip-l-336", 0, 576), ("dinov2-s-112", 0, 16), ("dinov2-s-112", 224, 64)],
)
def test_tokens_of_a_picture(name: str, size: int, tokens: int) -> None:
    assert image_tokens(known.joined(SHAPE, name), size) == tokens


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{not json", "not valid JSON"),
        ("[1]", "holds a list"),
        ({}, "has no model_type"),
        ({**SHAPE, "num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is not a whole number from 1 to 4096"),
        ({**SHAPE, "hidden_size": -1}, "hidden_size=-1"),
        ({**SHAPE, "hidden_size": "many"}, "hidden_size='many'"),
        ({**SHAPE, "dtype": "int7"}, "dtype 'int7'"),
        ({**SHAPE, "model_type": "no_such_model"}, "model_type 'no_such_model' is unknown"),
        ({**SHAPE, "max_position_embeddings": "abc"}, "max_position_embeddings='abc'"),
        ({**SHAPE, "quantization_config": {"quant_method": "gptq"}}, "is quantised by another method"),
        ({"model_type": "llava", "text_config": 3}, "text_config is not an object"),
        (
            {"model_type": "llava", "text_config": SHAPE, "vision_config": {"image_size": 14, "patch_size": 16}},
            "image_size=14 is smaller than patch_size=16",
        ),
        ({"model_type": "qwen2", "rope_parameters": 7}, "transformers cannot build this model"),
    ],
)
def test_malformed_configs(tmp_path: Path, config: Any, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        open_skeleton(write(tmp_path, config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("qwen2.5-3", "did you mean .*qwen2.5-3b"),
        ("xyzzy", "known: qwen2.5-0.5b"),
        ("./nowhere/config.json", "no such file"),
        ("nowhere.json", "no such file"),
    ],
)
def test_unknown_models(model: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        open_skeleton(model)


def test_an_unknown_tower_suggests_names() -> None:
    with pytest.raises(PlanError, match="did you mean siglip-so400m-384"):
        open_skeleton("qwen2.5-3b", vision="siglip-so400m")


def test_a_hub_id_goes_to_transformers_and_its_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr("transformers.utils.cached_file", unreachable)
    with pytest.raises(
        PlanError, match=r"owner/name: no such path, and transformers cannot get it .* connect to the hub"
    ):
        open_skeleton("owner/name")
