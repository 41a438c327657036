"""Packed shared experts, attention and head: the engine reads what packing writes."""

from pathlib import Path
from typing import Any

import pytest

import mote
from mote.checkpoint.shards import Checkpoint
from mote.model.opening import open_config
from mote.run.compare import Text, compare
from mote.run.decoding import Decoding
from mote.run.weights import Weights

TEXT = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
PACKINGS: dict[str, dict[str, Any]] = {
    "int4 shared, int8 attention, int4 head": {"shared": "int4", "attention": "int8", "head": "int4"},
    "int8 shared": {"shared": "int8"},
    "int4 attention": {"attention": "int4", "group": 64},
    "int8 head": {"head": "int8", "group": 64},
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("family", ["qwen2", "llava"])
def test_packed_parts_are_those_of_transformers(family: str, packing: str, checkpoints: Any, tmp_path: Path) -> None:
    """qwen2 ties its head to the embedding, llava here does not."""
    upcycled = checkpoints(family, text=TEXT, initialise="random")[1]
    options = {"group": 32, **PACKINGS[packing]}
    packed = mote.pack(upcycled, tmp_path / "integers", codec="2bit", **options)
    checkpoint = Checkpoint.open(packed)
    engine = Decoding(Weights(checkpoint, open_config(checkpoint), kv="f32"), positions=2048, threads=1)
    found = compare(packed, engine, [Text(ids=range(5, 45)), Text(ids=range(60, 20, -1))])
    assert found.unflipped > 40
    assert found.largest_error < 1e-2  # a rounding that goes the other way is one level of one activation
    assert found.median_error < 1e-4
    formats = engine.weights.formats
    assert formats["routed"] == "2bit"
    for part in ("shared", "attention", "head"):
        assert formats[part] == options.get(part, "f32")
    assert engine.weights.token_bytes < engine.weights.bytes


@pytest.mark.parametrize("placement", ["first_half", "second_half"])
def test_formats_name_a_mixture_in_any_layer(placement: str, checkpoints: Any) -> None:
    checkpoint = Checkpoint.open(checkpoints("llama", placement=placement)[2])
    assert Weights(checkpoint, open_config(checkpoint)).formats["routed"] == "base3"
