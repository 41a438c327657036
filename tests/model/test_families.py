"""Parts are found by structure, in memory and on disk; what is not found is listed."""

import pytest
import torch

import mote
from mote.errors import UnsupportedModelError
from mote.model.families import anatomy, disk_anatomy, placement
from mote.model.vision import connect, encoder_outputs, vision_features


def test_parts_of_each_family(family, tiny):
    parts = anatomy(tiny(family))
    assert (parts.hidden_size, parts.ffn_size, len(parts.ffns)) == (36, 52, 2)
    assert parts.decoder is parts.language_model
    assert parts.lm_head is not None
    has_eyes = family in ("llava", "aya_vision")
    assert (parts.vision_tower is not None) == (parts.connector is not None) == has_eyes
    assert parts.image_token_id == (98 if has_eyes else None)


def test_names_on_disk_are_those_of_save_pretrained(family, tiny, tmp_path):
    tiny(family).save_pretrained(tmp_path)
    checkpoint = mote.Checkpoint.open(tmp_path)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    disk = disk_anatomy(checkpoint.config, shapes, "here")
    assert (disk.num_layers, disk.hidden_size, disk.ffn_size) == (2, 36, 52)
    assert disk.weight(1, "down_proj") in shapes


def test_unknown_models_say_what_was_looked_for():
    from transformers import GemmaConfig, GemmaForCausalLM, GPT2Config, GPT2LMHeadModel

    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "vocab_size": 9}
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel.*gate,up,down.*model\.language_model\.layers"):
        mote.upcycle(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)))
    gemma = GemmaForCausalLM(GemmaConfig(**small, num_key_value_heads=1, intermediate_size=8, head_dim=4))
    with pytest.raises(UnsupportedModelError, match="activation"):
        mote.upcycle(gemma)


def test_biased_networks_are_refused(tiny):
    with pytest.raises(UnsupportedModelError, match="bias"):
        anatomy(tiny("llama", mlp_bias=True))


def test_disk_anatomy_refuses_gaps_and_fused_matrices():
    whole = {
        f"model.layers.{i}.mlp.{p}.weight": (8, 4) if p != "down_proj" else (4, 8)
        for i in range(2)
        for p in ("gate_proj", "up_proj", "down_proj")
    }
    assert disk_anatomy({}, whole, "x").num_layers == 2
    gap = {k: v for k, v in whole.items() if "1.mlp.up" not in k}
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp"):
        disk_anatomy({}, gap, "x")
    with pytest.raises(UnsupportedModelError, match="none"):
        disk_anatomy({}, {"model.layers.0.mlp.gate_up_proj.weight": (16, 4)}, "x")
    with pytest.raises(UnsupportedModelError, match="gelu"):
        disk_anatomy({"text_config": {"hidden_act": "gelu"}}, whole, "x")
    with pytest.raises(UnsupportedModelError, match="bias"):
        disk_anatomy({}, {**whole, "model.layers.0.mlp.up_proj.bias": (8,)}, "x")


@pytest.mark.parametrize(
    ("rule", "layers"),
    [("dense", (0, 1, 2, 3, 4)), ("sparse", (0, 2, 4)), ("first_half", (0, 1)), ("second_half", (2, 3, 4))],
)
def test_placements(rule, layers):
    assert placement(rule, 5) == layers


def test_explicit_placement_is_checked():
    assert placement("explicit", 5, (3, 1)) == (1, 3)
    for wrong in ((5,), (-1,), ()):
        with pytest.raises(UnsupportedModelError, match="choose from 0 to 4"):
            placement("explicit", 5, wrong)
    with pytest.raises(UnsupportedModelError, match="unknown"):
        placement("odd", 5)


@pytest.mark.parametrize("family", ["llava", "aya_vision"])
def test_cached_features_give_the_same_logits(family, tiny, inputs):
    model, batch = tiny(family), inputs(family)
    with torch.no_grad():
        whole = model(**batch).logits
        features = vision_features(model, batch.pop("pixel_values"))
        assert connect(model, features).shape == (2, 4, 36)
        split = model(**batch, mm_encoder_outputs=encoder_outputs(model, features)).logits
    assert torch.equal(whole, split)


def test_text_models_have_no_eyes(tiny):
    with pytest.raises(UnsupportedModelError, match="vision tower"):
        vision_features(tiny("llama"), torch.zeros(1, 3, 28, 28))
    with pytest.raises(UnsupportedModelError, match="connector"):
        connect(tiny("llama"), torch.zeros(1, 4, 24))
