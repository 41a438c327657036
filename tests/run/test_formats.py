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
    "int3 shared, int6 attention, int2 head": {"shared": "int3", "attention": "int6", "head": "int2"},
    "zero points": {"shared": "int2", "attention": "int8", "head": "int3", "symmetric": False},
}
EXPERTS: dict[str, dict[str, Any]] = {
    "int3": {"experts": "int3", "attention": "int6", "head": "int8"},
    "int4 with zero points": {"experts": "int4", "symmetric": False},
    "int8 with zero points": {"experts": "int8", "symmetric": False, "head": "int8"},
    "floats": {"attention": "int4"},
}
NATIVE = {("int8", False): "uint8", ("none", True): "f32", ("none", False): "f32"}


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
        chosen = options.get(part, "none"), options.get("symmetric", True)
        assert formats[part] == NATIVE.get(chosen, chosen[0])
    assert engine.weights.token_bytes < engine.weights.bytes


@pytest.mark.parametrize("packing", EXPERTS)
def test_experts_packed_after_training_are_those_of_transformers(
    packing: str, checkpoints: Any, tiny: Any, processor: Any, tmp_path: Path
) -> None:
    """MoE-LLaVA's mixture: no shared expert, two of four experts, gates that sum to 1."""
    tiny("qwen2", **TEXT).save_pretrained(tmp_path / "dense")
    processor.tokenizer.save_pretrained(tmp_path / "dense")
    mote.upcycle(tmp_path / "dense", tmp_path / "upcycled", config="moe-llava", initialise="random")
    packed = mote.pack(tmp_path / "upcycled", tmp_path / "packed", **{"group": 32, **EXPERTS[packing]})
    checkpoint = Checkpoint.open(packed)
    weights = Weights(checkpoint, open_config(checkpoint), kv="f32")
    engine = Decoding(weights, positions=2048, threads=1)
    found = compare(packed, engine, [Text(ids=range(5, 45)), Text(ids=range(60, 20, -1))])
    assert found.unflipped > 20
    assert found.largest_error < 1e-2
    assert found.median_error < 1e-4
    chosen = EXPERTS[packing].get("experts", "none"), EXPERTS[packing].get("symmetric", True)
    assert weights.formats["routed"] == NATIVE.get(chosen, chosen[0])
    experts = sum(info.nbytes for name, info in checkpoint.tensors.items() if ".mlp.experts." in name)
    assert weights.routed_bytes == experts
    assert weights.token_bytes == weights.bytes - experts // 2


@pytest.mark.parametrize("bits", [2, 3, 6, 8])
def test_a_dense_model_in_any_width(bits: int, tiny: Any, processor: Any, tmp_path: Path) -> None:
    tiny("llama", **TEXT).save_pretrained(tmp_path / "dense")
    processor.tokenizer.save_pretrained(tmp_path / "dense")
    options: dict[str, Any] = {"shared": f"int{bits}", "group": 32, "symmetric": bits != 3}
    packed = mote.pack(tmp_path / "dense", tmp_path / "packed", **options)
    checkpoint = Checkpoint.open(packed)
    engine = Decoding(Weights(checkpoint, open_config(checkpoint), kv="f32"), positions=2048, threads=1)
    found = compare(packed, engine, [Text(ids=range(5, 45))])
    assert found.largest_error < 1e-2
    assert found.median_error < 1e-4


@pytest.mark.parametrize("placement", ["first_half", "second_half"])
def test_formats_name_a_mixture_in_any_layer(placement: str, checkpoints: Any) -> None:
    checkpoint = Checkpoint.open(checkpoints("llama", placement=placement)[2])
    assert Weights(checkpoint, open_config(checkpoint)).formats["routed"] == "base3"
