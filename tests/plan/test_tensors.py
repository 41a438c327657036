"""The tables of names and shapes say what transformers writes to disk, and builds without memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mote.checkpoint.shards import Checkpoint
from mote.plan import known
from mote.plan.outline import outline
from mote.plan.tensors import shapes

Dense = Callable[..., Path]


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("text", [{}, {"attention_bias": True}], ids=["plain", "biases"])
def test_the_tables_are_the_files(family: str, dense: Dense, text: dict[str, Any]) -> None:
    folder = dense(family, **text)
    held = {name: info.shape for name, info in Checkpoint.open(folder).tensors.items()}
    assert shapes(config_of(folder)) == held


def test_a_clip_tower_and_qwen3_too(tmp_path: Path) -> None:
    import transformers as tf

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    vision = tf.CLIPVisionConfig(**sizes, image_size=28, patch_size=14)
    text = tf.Qwen3Config(**sizes, num_key_value_heads=1, head_dim=16, vocab_size=99)
    tf.LlavaForConditionalGeneration(tf.LlavaConfig(vision_config=vision, text_config=text)).save_pretrained(tmp_path)
    held = {name: info.shape for name, info in Checkpoint.open(tmp_path).tensors.items()}
    config = config_of(tmp_path)
    found = shapes(config)
    assert found == held, config
    built = outline(config, "it")
    assert sorted(built.values()) == sorted(held.values())


@pytest.mark.parametrize("name", ["qwen2.5-3b", "qwen2.5-7b", "qwen3-4b", "smollm2-135m"])
def test_known_models_are_what_transformers_builds(name: str) -> None:
    config = known.model_config(name)
    found = shapes(config)
    assert found is not None
    assert sorted(outline(config, name).values()) == sorted(found.values())


@pytest.mark.parametrize("name", known.table("towers"))
def test_known_towers_are_what_transformers_builds(name: str) -> None:
    config = known.joined(known.table("models")["qwen2.5-0.5b"], name)
    found = shapes(config)
    assert found is not None
    assert sorted(outline(config, name).values()) == sorted(found.values())


def test_what_the_tables_do_not_hold_is_left_to_transformers() -> None:
    assert shapes({"model_type": "gemma3_text", "hidden_size": 8}) is None
    row = dict(known.table("models")["qwen2.5-3b"])
    del row["num_key_value_heads"]
    assert shapes(row) is None
