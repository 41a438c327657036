"""Experts trained in full precision (MoE-LLaVA's), packed afterwards in 2 to 8 bits, with and without zero points."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import mote
from mote.checkpoint.accounting import describe
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.verify import verify
from mote.errors import CheckpointError, FormatError
from mote.model.block import blocks
from mote.model.experts import PackedExperts
from mote.model.packed import use_backend

CASES = [("int2", True), ("int3", False), ("int4", True), ("int6", False), ("int8", False)]


def _logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def _apart(model):
    """Experts as training leaves them: no two alike."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for block in blocks(model):
            block.router.weight.mul_(20)
            for weight in block.experts.parameters():
                weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.mark.parametrize(("experts", "symmetric"), CASES)
def test_memory_disk_and_loaded_are_one(experts, symmetric, tiny, inputs, tmp_path):
    model = _apart(mote.upcycle(tiny("llama"), config="moe-llava"))
    model.save_pretrained(tmp_path / "source", max_shard_size="30KB")
    options = {"experts": experts, "group": 32, "symmetric": symmetric, "attention": "int8", "head": "int3"}
    path = mote.pack(tmp_path / "source", tmp_path / "packed", **options)
    loaded, packed = AutoModelForCausalLM.from_pretrained(path), mote.pack(copy.deepcopy(model), **options)
    states = packed.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    assert any(name.endswith("experts.down_proj_zero") for name in states[0]) != symmetric
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        assert value.dtype == states[1][name].dtype
    batch = inputs("llama")
    logits = _logits(packed, batch)
    assert torch.equal(logits, _logits(loaded, batch))
    use_backend(loaded, "reference")
    assert torch.equal(logits, _logits(loaded, batch))
    assert verify(path).problems == []


@pytest.mark.parametrize(("experts", "symmetric"), CASES)
def test_logits_are_those_of_rounded_weights(experts, symmetric, tiny, inputs):
    """int8 activations apart: against the float model that holds the packed experts' numbers."""
    model = _apart(mote.upcycle(tiny("llava"), config="moe-llava"))
    packed = mote.pack(copy.deepcopy(model), experts=experts, group=32, symmetric=symmetric)
    with torch.no_grad():
        for plain, block in zip(blocks(model), blocks(packed), strict=True):
            for name, layout in block.experts.layouts.items():
                parts = [getattr(block.experts, f"{name}_{part}") for part in ("packed", "scale", "zero")]
                for expert, weight in enumerate(getattr(plain.experts, name)):
                    before = weight.clone()
                    weight.copy_(layout.decode(*(None if part is None else part[expert] for part in parts)))
                    assert (weight - before).abs().max() <= before.abs().max()
    rounded, logits = _logits(model, inputs("llava")), _logits(packed, inputs("llava"))
    assert (rounded - logits).norm() / rounded.norm() < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_keep_their_dtype(dtype, tiny, tmp_path):
    path = tmp_path / "packed"
    mote.pack(mote.upcycle(tiny("llava"), config="moe-llava"), experts="int3", symmetric=False).save_pretrained(path)
    loaded = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype)
    for moved in (loaded, copy.deepcopy(loaded).to(torch.float32), loaded.to(dtype)):
        experts = blocks(moved)[0].experts
        assert isinstance(experts, PackedExperts)
        assert experts.up_proj_packed.dtype == torch.uint8
        assert experts.up_proj_scale.dtype == experts.up_proj_zero.dtype == torch.bfloat16
        assert blocks(moved)[0].router.weight.dtype == torch.float32


def test_bytes_are_those_of_the_width(tiny, tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 192}
    mote.upcycle(tiny("llama", **sizes), config="moe-llava").save_pretrained(tmp_path / "source")
    for experts, symmetric, bits in (
        ("int3", True, 3.25),
        ("int3", False, 3.5),
        ("int6", True, 6.25),
        ("int2", True, 2.25),
    ):
        path = mote.pack(
            tmp_path / "source", tmp_path / "packed", experts=experts, symmetric=symmetric, group=64, force=True
        )
        mixture = describe(Checkpoint.open(path))["mixture"]
        assert mixture["bits_per_expert_weight"] == bits
        weights = 2 * 4 * 3 * 128 * 192
        assert mixture["paper_accounting_gib"] == pytest.approx(weights * int(experts[3:]) / 8 / 2**30)
        assert describe(Checkpoint.open(path))["true_bytes"]["scales"] == weights * (bits - int(experts[3:])) / 8


def test_float_experts_stay_beside_what_is_packed(tiny, inputs, tmp_path):
    model = _apart(mote.upcycle(tiny("qwen2"), config="moe-llava"))
    model.save_pretrained(tmp_path / "source")
    path = mote.pack(tmp_path / "source", tmp_path / "packed", attention="int4", group=32)
    loaded, packed = (
        AutoModelForCausalLM.from_pretrained(path),
        mote.pack(copy.deepcopy(model), attention="int4", group=32),
    )
    assert blocks(loaded)[0].experts.gate_proj.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(_logits(packed, inputs("qwen2")), _logits(loaded, inputs("qwen2")))
    assert verify(path).problems == []


def test_a_gain_folds_into_experts_of_full_precision(tiny, inputs, tmp_path):
    routed = mote.WeightFormat(quantizer="none", activation="none")
    model = _apart(mote.upcycle(tiny("llama"), routed=routed, combine="gated"))
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(FormatError, match="experts=int4"):
        mote.pack(tmp_path / "source", tmp_path / "packed", attention="int8")
    path = mote.pack(tmp_path / "source", tmp_path / "packed", experts="int8", group=32)
    packed = mote.pack(copy.deepcopy(model), experts="int8", group=32)
    loaded = AutoModelForCausalLM.from_pretrained(path)
    batch = inputs("llama")
    logits = _logits(model, batch)
    assert torch.equal(_logits(packed, batch), _logits(loaded, batch))
    assert (logits - _logits(packed, batch)).norm() / logits.norm() < 0.03


def test_what_does_not_fit_is_refused(tiny, tmp_path):
    with pytest.raises(FormatError, match="were trained as ternary"):
        mote.pack(mote.upcycle(tiny("llama")), experts="int3")
    with pytest.raises(FormatError, match="say shared=int3"):
        mote.pack(tiny("llama"), experts="int3")
    with pytest.raises(FormatError, match="'int5' is unknown"):
        mote.pack(mote.upcycle(tiny("llama"), config="moe-llava"), experts="int5")
    packed = mote.pack(mote.upcycle(tiny("llama"), config="moe-llava"), experts="int3")
    with pytest.raises(CheckpointError, match="packed already"):
        mote.pack(packed, experts="int3")


def test_damage_is_found(tiny, tmp_path):
    path = tmp_path / "packed"
    mote.pack(mote.upcycle(tiny("llama"), config="moe-llava"), experts="int3", symmetric=False).save_pretrained(path)
    shard = path / "model.safetensors"
    tensors = Checkpoint.open(path).tensors
    good = shard.read_bytes()
    info = tensors["model.layers.1.mlp.experts.down_proj_zero"]
    shard.write_bytes(good[: info.offset] + b"\xff\x7f" + good[info.offset + 2 :])
    with pytest.raises(CheckpointError, match=r"down_proj_zero.* zero points that are NaN or Inf"):
        Checkpoint.open(path)
    info = tensors["model.layers.1.mlp.experts.down_proj_packed"]
    shard.write_bytes(good[: info.offset] + bytes(768) + good[info.offset + 768 :])
    assert [problem for problem in verify(path).problems if "padding" in problem and "expert 0" in problem]
