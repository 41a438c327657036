"""Packing changes no number that inference sees, in memory and on disk."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import mote
from mote.errors import CheckpointError, FormatError, RecipeError, UnsupportedModelError
from mote.model.block import blocks
from mote.model.packed import PackedLinear, use_backend
from mote.ternary.activations import quantize_activation

FORMATS = {
    "tensor": mote.WeightFormat(),
    "row": mote.WeightFormat(granularity="row"),
    "lloyd_max": mote.WeightFormat(granularity="row", scale="lloyd_max"),
    "binary": mote.WeightFormat(quantizer="binary"),
    "group": mote.WeightFormat(granularity="group", group=16, scale="lloyd_max"),
}


def _trained(model):
    """Master weights as training leaves them: different in every expert."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for block in blocks(model):
            for weight in block.experts.parameters():
                weight += 0.05 * torch.randn(weight.shape, generator=generator)
            block.router.weight.mul_(20)
    return model


@pytest.mark.parametrize("codec", ["base3", "2bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["tensor", "row", "lloyd_max", "binary"])
def test_logits_are_equal_to_the_bit(name, dtype, codec, tiny, inputs):
    model = _trained(mote.upcycle(tiny("aya_vision"), routed=FORMATS[name])).to(dtype)
    packed = mote.pack(copy.deepcopy(model), codec=codec)
    batch = inputs("aya_vision")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, packed(**batch).logits)
        use_backend(packed, "reference")
        assert torch.equal(model(**batch).logits, packed(**batch).logits)


@pytest.mark.parametrize("settings", [{"combine": "gated"}, {"combine": "convex", "num_experts": 3, "top_k": 2}])
def test_gain_folds_without_changing_a_bit(settings, tiny, inputs):
    model = _trained(mote.upcycle(tiny("llama"), **settings))
    packed = mote.pack(copy.deepcopy(model))
    assert not any(name.endswith("gain") for name in packed.state_dict())
    with torch.no_grad():
        assert torch.equal(model(**inputs("llama")).logits, packed(**inputs("llama")).logits)


@pytest.mark.parametrize("codec", ["base3", "2bit"])
def test_group_scales_stay_within_the_bound(codec, tiny):
    """(G + 2) ulp of the sum of magnitudes: the bound for any order of adding G groups in fp32."""
    model = _trained(mote.upcycle(tiny("llama"), routed=FORMATS["group"]))
    packed = mote.pack(copy.deepcopy(model), codec=codec)
    x = torch.randn(17, 36, generator=torch.Generator().manual_seed(0))
    experts, stored = blocks(model)[0].experts, blocks(packed)[0].experts
    with torch.no_grad():
        offsets = [0, 17, 17, 17, 17]
        mine = experts._project("gate_proj", x, offsets)
        theirs = stored._project("gate_proj", x, offsets)
        x_q, s = quantize_activation(x)
        q, scale = experts.quantized("gate_proj")
        magnitude = torch.zeros_like(mine)
        for group in range(3):
            columns = slice(16 * group, 16 * group + 16)
            acc = (x_q[:, columns].double() @ q[0][:, columns].double().T).abs()
            magnitude += (acc * scale[0][:, group].abs() * s[:, None]).float()
    assert ((mine - theirs).abs() <= (3 + 2) * 2**-23 * magnitude + 1e-30).all()


def test_quantised_shared_expert_is_packed_too(tiny, inputs, tmp_path):
    model = _trained(mote.upcycle(tiny("llama"), shared=mote.WeightFormat(granularity="row")))
    model.save_pretrained(tmp_path / "upcycled")
    with torch.no_grad():
        expected = model(**inputs("llama")).logits
    packed = mote.pack(model)
    assert isinstance(blocks(packed)[0].down_proj, PackedLinear)
    with torch.no_grad():
        assert torch.equal(packed(**inputs("llama")).logits, expected)
    loaded = AutoModelForCausalLM.from_pretrained(mote.pack(tmp_path / "upcycled", tmp_path / "packed"))
    with torch.no_grad():
        assert torch.equal(loaded(**inputs("llama")).logits, expected)


@pytest.mark.parametrize("family_settings", [("llava", {}), ("qwen2", {"combine": "gated", "placement": "sparse"})])
@pytest.mark.parametrize("name", ["tensor", "row", "group"])
def test_streaming_writes_what_memory_holds(name, family_settings, tiny, tmp_path):
    family, settings = family_settings
    model = _trained(mote.upcycle(tiny(family), routed=FORMATS[name], **settings))
    model.save_pretrained(tmp_path / "upcycled", max_shard_size="30KB")
    path = mote.pack(tmp_path / "upcycled", tmp_path / "packed", codec="2bit")
    assert path == tmp_path / "packed"
    auto = AutoModelForImageTextToText if family == "llava" else AutoModelForCausalLM
    streamed = auto.from_pretrained(path).state_dict()
    packed = mote.pack(model, codec="2bit").state_dict()
    assert streamed.keys() == packed.keys()
    for key, value in packed.items():
        assert torch.equal(streamed[key], value), key
    lineage = mote.Checkpoint.open(path).lineage
    assert lineage is not None
    assert lineage.verb == "pack"


def test_scales_stay_float32_when_the_model_moves_to_bf16(tiny):
    packed = mote.pack(mote.upcycle(tiny("llama"), shared=mote.WeightFormat())).to(torch.bfloat16)
    block = blocks(packed)[0]
    assert block.experts.up_proj_scale.dtype == torch.float32
    assert block.up_proj.scale.dtype == torch.float32
    assert block.router.weight.dtype == torch.float32


def test_gradient_reaches_the_input_of_a_packed_matrix(tiny):
    model = _trained(mote.upcycle(tiny("llama"), routed=FORMATS["row"]))
    packed = mote.pack(copy.deepcopy(model))
    h = torch.randn(9, 36, generator=torch.Generator().manual_seed(0))
    gradients = []
    for which in (model, packed):
        x = h.clone().requires_grad_()
        blocks(which)[0](x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_nan_and_inf_are_refused_and_nothing_changes(tiny, tmp_path):
    for bad in (float("nan"), float("inf")):
        model = mote.upcycle(tiny("llama"))
        with torch.no_grad():
            blocks(model)[1].experts.up_proj[2, 3, 4] = bad
        model.save_pretrained(tmp_path / "bad")
        with pytest.raises(FormatError, match="layer 1"):
            mote.pack(model)
        assert blocks(model)[0].mote.state == "upcycled"
        with pytest.raises(CheckpointError, match=r"experts\.up_proj"):
            mote.pack(tmp_path / "bad", tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_what_cannot_be_packed_says_so(tiny, tmp_path):
    with pytest.raises(UnsupportedModelError, match="up-cycle it first"):
        mote.pack(tiny("llama"))
    with pytest.raises(FormatError, match="none experts"):
        mote.pack(mote.upcycle(tiny("llama"), config="moe-llava"))
    with pytest.raises(CheckpointError, match="packed already"):
        mote.pack(mote.pack(mote.upcycle(tiny("llama"))))
    with pytest.raises(FormatError, match="codec 'zip'"):
        mote.pack(tiny("llama"), codec="zip")
    tiny("llama").save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="is dense"):
        mote.pack(tmp_path / "dense", tmp_path / "out")
    with pytest.raises(RecipeError, match="out"):
        mote.pack(tmp_path / "dense")
    with pytest.raises(RecipeError, match="in place"):
        mote.pack(tiny("llama"), tmp_path / "out")
