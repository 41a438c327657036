"""Shared experts, attention, head in int4 and int8: the same bits in memory, on disk and loaded, on both backends."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import mote
from mote.checkpoint.verify import verify
from mote.compress.stream import _Packer
from mote.errors import CheckpointError, FormatError, UnsupportedModelError
from mote.model.block import blocks
from mote.model.packed import PackedLinear, use_backend
from mote.model.table import PackedEmbedding, TiedHead

EVERYTHING = {"shared": "int4", "attention": "int8", "head": "int4", "group": 32}
EYES = ("llava", "aya_vision")
INT4 = mote.WeightFormat(quantizer="int4", scale="absmax", granularity="group", group=32)
PACKED_INT4 = mote.WeightFormat(
    quantizer="int4", scale="absmax", granularity="group", group=32, activation="int8_group"
)


def _auto(family):
    return AutoModelForImageTextToText if family in EYES else AutoModelForCausalLM


def _everything(family):
    return {**EVERYTHING, "tower": "int8"} if family in EYES else EVERYTHING


def _logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_memory_disk_and_loaded_are_one(family, kind, tiny, inputs, tmp_path):
    model = mote.upcycle(tiny(family)) if kind == "mixture" else tiny(family)
    model.save_pretrained(tmp_path / "source", max_shard_size="30KB")
    path = mote.pack(tmp_path / "source", tmp_path / "packed", **_everything(family))
    loaded = _auto(family).from_pretrained(path)
    packed = mote.pack(copy.deepcopy(model), **_everything(family))
    states = packed.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        assert value.dtype == states[1][name].dtype
    assert packed.config.quantization_config.to_dict() == loaded.config.quantization_config.to_dict()
    batch = inputs(family)
    logits = _logits(packed, batch)
    assert torch.equal(logits, _logits(loaded, batch))
    use_backend(loaded, "reference")
    assert torch.equal(logits, _logits(loaded, batch))
    assert verify(path).problems == []


def test_logits_are_those_of_rounded_weights(family, tiny, inputs):
    """int8 activations apart: against the float model that holds the packed matrices' numbers."""
    model = mote.upcycle(tiny(family))
    packed = mote.pack(copy.deepcopy(model), **_everything(family))
    plain = dict(model.named_modules())
    count = 0
    with torch.no_grad():
        for name, module in packed.named_modules():
            if isinstance(module, PackedLinear | PackedEmbedding):
                plain[name].weight.copy_(module.layout.decode(module.packed, module.scale))
                count += 1
    layers = packed.config.vision_config.num_hidden_layers if family in EYES else 0
    assert count == 2 * 7 + 1 + layers * 6
    batch = inputs(family)
    rounded, logits = _logits(model, batch), _logits(packed, batch)
    assert (rounded - logits).norm() / rounded.norm() < 0.02


@pytest.mark.parametrize("family", ["qwen2", "aya_vision"])
def test_tied_embedding_is_one_table(family, tiny, tmp_path):
    packed = mote.pack(tiny(family), head="int4")
    table, head = packed.get_input_embeddings(), packed.lm_head
    assert isinstance(table, PackedEmbedding)
    assert isinstance(head, TiedHead)
    assert not any("lm_head" in name for name in packed.state_dict())
    packed.tie_weights()
    packed.save_pretrained(tmp_path / "saved")
    names = mote.Checkpoint.open(tmp_path / "saved").tensors
    assert sum(name.endswith(("embed_tokens.packed", "lm_head.packed")) for name in names) == 1
    moved = copy.deepcopy(packed).to(torch.bfloat16)
    assert moved.lm_head._table[0] is moved.get_input_embeddings()
    assert moved.get_input_embeddings()(torch.tensor([[3]])).dtype == torch.bfloat16
    assert moved.get_input_embeddings().scale.dtype == torch.bfloat16
    back = moved.to(torch.float32).get_input_embeddings()
    assert (back.scale.dtype, back.dtype) == (torch.bfloat16, torch.float32)


def test_untied_head_is_quantised_alone(tiny):
    packed = mote.pack(tiny("llama"), head="int8")
    assert isinstance(packed.lm_head, PackedLinear)
    assert packed.get_input_embeddings().weight.dtype == torch.float32
    assert packed.config.quantization_config.contract.attention.quantizer == "none"


def test_untied_qwen2_with_biases(tiny, inputs, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = {**tiny("qwen2").config.to_dict(), "tie_word_embeddings": False}
    model = Qwen2ForCausalLM(Qwen2Config(**config)).eval()
    model.save_pretrained(tmp_path / "source")
    loaded = AutoModelForCausalLM.from_pretrained(mote.pack(tmp_path / "source", tmp_path / "out", **EVERYTHING))
    packed = mote.pack(model, **EVERYTHING)
    assert isinstance(loaded.lm_head, PackedLinear)
    assert torch.equal(_logits(packed, inputs("qwen2")), _logits(loaded, inputs("qwen2")))


@pytest.mark.parametrize("codec", ["int4", "int8"])
def test_biases_stay(codec, tiny, inputs, tmp_path):
    model = tiny("qwen2")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.normal_()
    model.save_pretrained(tmp_path / "source")
    packed = mote.pack(copy.deepcopy(model), attention=codec)
    k = packed.model.layers[1].self_attn.k_proj
    assert torch.equal(k.bias, model.model.layers[1].self_attn.k_proj.bias)
    x = torch.randn(3, 36, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        without = PackedLinear(k.layout)
        without.packed.copy_(k.packed)
        without.scale.copy_(k.scale)
        assert torch.equal(k(x), without(x) + k.bias)
    loaded = AutoModelForCausalLM.from_pretrained(mote.pack(tmp_path / "source", tmp_path / "out", attention=codec))
    assert torch.equal(_logits(packed, inputs("qwen2")), _logits(loaded, inputs("qwen2")))


def test_layers_without_a_mixture_go_with_the_shared_expert(tiny, inputs, tmp_path):
    model = mote.upcycle(tiny("llama"), placement="sparse")
    model.save_pretrained(tmp_path / "source")
    packed = mote.pack(model, shared="int8")
    assert [type(layer.mlp.up_proj) for layer in packed.model.layers] == [PackedLinear, PackedLinear]
    path = mote.pack(tmp_path / "source", tmp_path / "out", shared="int8")
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert torch.equal(_logits(packed, inputs("llama")), _logits(loaded, inputs("llama")))
    ternary = mote.pack(mote.upcycle(tiny("llama"), placement="sparse", shared=mote.WeightFormat()))
    assert [type(layer.mlp.up_proj) for layer in ternary.model.layers] == [PackedLinear, torch.nn.Linear]


def test_a_shared_expert_trained_on_a_grid_is_stored_on_it(tiny, inputs):
    model = mote.upcycle(tiny("llama"), shared=INT4)
    expected = _logits(model, inputs("llama"))
    packed = mote.pack(copy.deepcopy(model))
    assert blocks(packed)[0].mote.shared == PACKED_INT4
    assert isinstance(blocks(packed)[0].up_proj, PackedLinear)
    got = _logits(packed, inputs("llama"))
    assert (got - expected).norm() / expected.norm() < 0.02  # scales in bf16, activations int8 per group
    asked = mote.pack(copy.deepcopy(model), shared="int4", group=32)
    assert torch.equal(got, _logits(asked, inputs("llama")))
    for other in ({"shared": "int8", "group": 32}, {"shared": "int4", "group": 64}):
        with pytest.raises(FormatError, match="was trained as int4"):
            mote.pack(copy.deepcopy(model), **other)
    per_row = mote.WeightFormat(quantizer="int4", scale="absmax", granularity="row")
    kept = mote.pack(mote.upcycle(tiny("llama"), shared=per_row))
    assert blocks(kept)[0].up_proj.weight.dtype == torch.float32  # no codec holds it
    sparse = mote.pack(mote.upcycle(tiny("llama"), shared=INT4, placement="sparse"))
    assert blocks(sparse)[0].up_proj.weight.dtype == torch.float32  # the dense layer was not trained on the grid


def test_a_model_packed_throughout_keeps_its_dtype(tiny, inputs, tmp_path):
    mote.upcycle(tiny("llama", tie_word_embeddings=True)).save_pretrained(tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.bfloat16)
    packed = mote.pack(model, **EVERYTHING)
    packed.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert packed.dtype == loaded.dtype == torch.bfloat16
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    logits = _logits(loaded, inputs("llama"))
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, _logits(packed, inputs("llama")))


def test_generate_and_pipeline(tiny, processor, tmp_path):
    from transformers import pipeline

    tiny("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "source")
    processor.tokenizer.save_pretrained(tmp_path / "source")
    path = mote.pack(tmp_path / "source", tmp_path / "packed", **EVERYTHING)
    loaded = AutoModelForCausalLM.from_pretrained(path)
    ids = torch.tensor([[1, 7, 9]])
    cached = loaded.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(cached, loaded.generate(ids, max_new_tokens=5, do_sample=False, use_cache=False))
    answer = pipeline("text-generation", model=str(path))("word11 word12", max_new_tokens=3, do_sample=False)
    assert answer[0]["generated_text"].startswith("word11")
    assert isinstance(mote.load(path).ask(None, "What is this", max_new_tokens=3), str)


def test_a_packed_model_with_eyes_answers(tiny, processor, tmp_path):
    from PIL import Image

    Image.radial_gradient("L").resize((40, 30)).convert("RGB").save(tmp_path / "picture.png")
    mote.upcycle(tiny("aya_vision")).save_pretrained(tmp_path / "source")
    processor.save_pretrained(tmp_path / "source")
    path = mote.pack(tmp_path / "source", tmp_path / "packed", **_everything("aya_vision"))
    assert isinstance(mote.load(path).ask(tmp_path / "picture.png", "What is this", max_new_tokens=3), str)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_other_ways_to_load(family, tiny, inputs, tmp_path):
    packed = mote.pack(mote.upcycle(tiny(family)), **EVERYTHING)
    packed.save_pretrained(tmp_path / "packed")
    placed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", device_map="cpu")
    assert torch.equal(_logits(placed, inputs(family)), _logits(packed, inputs(family)))
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float16)
    assert {b.dtype for name, b in half.named_buffers() if name.endswith("_proj.scale")} == {torch.bfloat16}
    assert _logits(half, inputs(family)).dtype == torch.float16
    built = mote.from_config(AutoConfig.from_pretrained(tmp_path / "packed"))
    assert built.state_dict().keys() == packed.state_dict().keys()
    assert torch.isfinite(_logits(built, inputs(family))).all()


def test_gradient_reaches_the_input(tiny):
    packed = mote.pack(tiny("llama"), attention="int4", group=32)
    q = packed.model.layers[0].self_attn.q_proj
    x = torch.randn(4, 36, generator=torch.Generator().manual_seed(0), requires_grad=True)
    q(x).sum().backward()
    expected = q.layout.decode(q.packed, q.scale).sum(0)
    torch.testing.assert_close(x.grad, expected.expand(4, -1))
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_a_head_that_repeats_the_embedding_is_dropped(tiny, inputs, tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny("qwen2")
    model.save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(mote.pack(tmp_path / "source", tmp_path / "out", head="int8"))
    packed = mote.pack(model, head="int8")
    assert torch.equal(_logits(loaded, inputs("qwen2")), _logits(packed, inputs("qwen2")))
    tensors["lm_head.weight"][3, 4] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        mote.pack(tmp_path / "source", tmp_path / "other", head="int8")


def test_a_head_that_is_missing_is_not_made_up(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    tiny("llama").save_pretrained(tmp_path / "source")  # its config says that they are not tied
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"source: lacks lm_head\.weight"):
        mote.pack(tmp_path / "source", tmp_path / "out", head="int8")


def test_nonsense_is_refused_and_nothing_changes(tiny, tmp_path):
    model = tiny("llama")
    with pytest.raises(FormatError, match="attention='int5'"):
        mote.pack(model, attention="int5")
    with pytest.raises(FormatError, match="group=48"):
        mote.pack(model, attention="int4", group=48)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[2, 3] = float("nan")
    before = set(model.state_dict())
    with pytest.raises(FormatError, match=r"layers\.1\.self_attn\.v_proj"):
        mote.pack(model, **EVERYTHING)
    assert set(model.state_dict()) == before
    model.save_pretrained(tmp_path / "bad")
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.v_proj"):
        mote.pack(tmp_path / "bad", tmp_path / "out", **EVERYTHING)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]
    packed = mote.pack(tiny("llama"), attention="int8")
    with pytest.raises(CheckpointError, match="packed already"):
        mote.pack(packed, head="int8")
    packed.save_pretrained(tmp_path / "packed")
    with pytest.raises(CheckpointError, match="packed already"):
        mote.pack(tmp_path / "packed", tmp_path / "out", head="int8")
    odd = tiny("llama")
    odd.lm_head = torch.nn.Identity()
    odd.lm_head.weight = torch.nn.Parameter(torch.ones(99, 36))
    with pytest.raises(UnsupportedModelError, match=r"nn\.Linear"):
        mote.pack(odd, head="int8")


def test_packing_keeps_no_more_than_the_parts_of_one_matrix(tiny, tmp_path, monkeypatch):
    kept, produce = [], _Packer.produce

    def watched(self, name):
        tensor = produce(self, name)
        kept.append(len(self._made))
        return tensor

    monkeypatch.setattr(_Packer, "produce", watched)
    model = mote.upcycle(tiny("qwen2"), routed=mote.WeightFormat(granularity="row"))
    model.save_pretrained(tmp_path / "upcycled")
    options = {"shared": "int4", "attention": "int8", "head": "int4", "symmetric": False, "group": 32}
    mote.pack(tmp_path / "upcycled", tmp_path / "packed", **options)
    assert len(kept) > 20
    assert max(kept) <= 2
