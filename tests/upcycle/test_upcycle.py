"""Up-cycling in memory and on disk gives the same checkpoint, and stage III moves only what it should."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import mote
from mote.errors import CheckpointError, FormatError, RecipeError, UnsupportedModelError
from mote.model.block import blocks
from mote.upcycle.config import PRESETS, preset


def _auto(family):
    return AutoModelForImageTextToText if family in ("llava", "aya_vision") else AutoModelForCausalLM


@pytest.mark.parametrize("settings", [{}, {"config": "moe-llava"}, {"combine": "gated", "initialise": "random"}])
def test_streaming_equals_memory(family, settings, tiny, tmp_path):
    dense = tiny(family)
    dense.save_pretrained(tmp_path / "dense", max_shard_size="30KB")
    (tmp_path / "dense" / "chat_template.jinja").write_text("{{ messages }}")
    path = mote.upcycle(tmp_path / "dense", tmp_path / "upcycled", **settings)
    streamed = _auto(family).from_pretrained(path)
    memory = mote.upcycle(dense, **settings)
    assert streamed.state_dict().keys() == memory.state_dict().keys()
    for name, value in memory.state_dict().items():
        assert torch.equal(value, streamed.state_dict()[name]), name
    assert streamed.config.quantization_config.to_dict() == memory.config.quantization_config.to_dict()
    assert (path / "chat_template.jinja").read_text() == "{{ messages }}"
    checkpoint = mote.Checkpoint.open(path)
    assert checkpoint.state == "upcycled"
    assert checkpoint.lineage is not None
    assert checkpoint.lineage.config["seed"] == 0


def test_bf16_checkpoint_stays_bf16_on_disk_and_becomes_fp32_in_memory(tiny, tmp_path):
    tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    path = mote.upcycle(tmp_path / "dense", tmp_path / "up")
    info = mote.Checkpoint.open(path).tensors
    assert info["model.layers.0.mlp.experts.up_proj"].dtype == "BF16"
    assert info["model.layers.0.mlp.router.weight"].dtype == "F32"
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert blocks(model)[0].experts.up_proj.dtype == torch.float32


def test_one_step_moves_routers_and_experts_only(family, tiny, inputs):
    model, batch = mote.upcycle(tiny(family)), inputs(family)
    before = copy.deepcopy(model.state_dict())
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".router." in name or ".experts." in name}


def test_train_shared_moves_the_shared_experts_too(tiny):
    model = mote.upcycle(tiny("llama"), train_shared=True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".mlp." in name}


def test_initialisations(tiny):
    dense = tiny("llama")
    ffn = dense.model.layers[1].mlp
    copied = blocks(mote.upcycle(copy.deepcopy(dense)))[1].experts
    assert all(torch.equal(expert, ffn.down_proj.weight) for expert in copied.down_proj)
    zero = blocks(mote.upcycle(copy.deepcopy(dense), initialise="zero"))[1].experts
    assert not zero.down_proj.any()
    assert torch.equal(zero.gate_proj[3], ffn.gate_proj.weight)
    random = blocks(mote.upcycle(copy.deepcopy(dense), initialise="random"))[1].experts
    assert random.up_proj.detach().std() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(random.up_proj[0], random.up_proj[1])


def test_seed_decides_the_router_and_layers_differ(tiny):
    first, again, other = (mote.upcycle(tiny("llama"), seed=seed) for seed in (1, 1, 2))
    weights = [[block.router.weight for block in blocks(model)] for model in (first, again, other)]
    assert torch.equal(weights[0][0], weights[1][0])
    assert not torch.equal(weights[0][0], weights[2][0])
    assert not torch.equal(weights[0][0], weights[0][1])
    assert weights[0][0].detach().std() == pytest.approx(0.02, rel=0.2)


def test_experts_of_another_checkpoint(tiny, tmp_path):
    donor = tiny("qwen2", seed=9)
    donor.save_pretrained(tmp_path / "donor")
    dense = tiny("llama")
    dense.save_pretrained(tmp_path / "dense")
    model = mote.upcycle(dense, initialise_from=str(tmp_path / "donor"))
    assert torch.equal(blocks(model)[0].experts.up_proj[2], donor.model.layers[0].mlp.up_proj.weight)
    path = mote.upcycle(tmp_path / "dense", tmp_path / "up", initialise_from=str(tmp_path / "donor"))
    streamed = AutoModelForCausalLM.from_pretrained(path)
    assert torch.equal(blocks(streamed)[1].experts.down_proj, blocks(model)[1].experts.down_proj)
    assert "initialise_from" in mote.Checkpoint.open(path).lineage.inputs
    tiny("llama", intermediate_size=60).save_pretrained(tmp_path / "wide")
    with pytest.raises(UnsupportedModelError, match="36 x 60"):
        mote.upcycle(tiny("llama"), initialise_from=str(tmp_path / "wide"))


def test_warning_about_small_models_comes_once(tiny, monkeypatch):
    monkeypatch.setattr("mote.upcycle.warning._given", False)
    mote.upcycle(tiny("llama"), config="moe-llava")  # none: it is about ternary experts
    with pytest.warns(UserWarning, match="underfit below 1 B"):
        mote.upcycle(tiny("llama"))
    mote.upcycle(tiny("llama"))  # a second warning would be an error here


def test_bad_weights_and_states_are_refused(tiny, tmp_path):
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(FormatError, match="layer 1 up_proj"):
        mote.upcycle(model)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight"):
        mote.upcycle(tmp_path / "nan", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan"]
    mote.upcycle(tiny("llama")).save_pretrained(tmp_path / "up")
    with pytest.raises(CheckpointError, match="is upcycled"):
        mote.upcycle(tmp_path / "up", tmp_path / "out")
    with pytest.raises(RecipeError, match="out"):
        mote.upcycle(tmp_path / "up")
    with pytest.raises(RecipeError, match="in place"):
        mote.upcycle(tiny("llama"), tmp_path / "out")


def test_settings_are_checked():
    for wrong in (
        {"placement": "explicit"},
        {"layers": (1,)},
        {"initialise": "ones"},
        {"initialise": "random", "initialise_from": "x"},
        {"expert_count": 3},
    ):
        with pytest.raises(RecipeError):
            preset("mote", **wrong)
    with pytest.raises(FormatError):
        preset("mote", num_experts=2, top_k=3)
    with pytest.raises(RecipeError, match="mote, moe-llava"):
        preset("dense")
    with pytest.raises(RecipeError, match="not both"):
        mote.upcycle("somewhere", "out", PRESETS["mote"], num_experts=3)


def test_config_json_names_the_base(tiny, tmp_path):
    tiny("llava").save_pretrained(tmp_path / "dense")
    mote.upcycle(tmp_path / "dense", tmp_path / "up")
    config = json.loads((tmp_path / "up/config.json").read_text())
    assert (config["model_type"], config["base_model_type"]) == ("mote_lmm", "llava")
    assert config["quantization_config"]["layers"] == [0, 1]
