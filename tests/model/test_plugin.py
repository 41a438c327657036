"""transformers' own doors: Auto classes, save_pretrained, pipeline, Trainer, both states, every family."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import mote
from mote.errors import CheckpointError, UnsupportedModelError
from mote.model.block import MoteBlock, blocks
from mote.model.quantizer import MoteQuantizationConfig


def _auto(family):
    return AutoModelForImageTextToText if family in ("llava", "aya_vision") else AutoModelForCausalLM


def _model(family, state, tiny):
    model = mote.upcycle(tiny(family))
    return mote.pack(model, codec="2bit") if state == "packed" else model


@pytest.mark.parametrize("state", ["upcycled", "packed"])
def test_save_load_generate(family, state, tiny, inputs, tmp_path):
    model, batch = _model(family, state, tiny), inputs(family)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    opened = mote.Checkpoint.open(tmp_path)
    assert opened.state == state
    assert len(opened.shards) > 1
    loaded = _auto(family).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, loaded(**batch).logits)
    assert loaded.is_quantized == (state == "packed")
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    generated = loaded.generate(**batch, max_new_tokens=3, do_sample=False)
    assert torch.equal(generated, model.generate(**batch, max_new_tokens=3, do_sample=False))
    loaded.save_pretrained(tmp_path / "again")
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tmp_path / "again"))
    for key in ("model_type", "base_model_type", "quantization_config", "architectures"):
        assert first[key] == second[key]


@pytest.mark.parametrize("state", ["upcycled", "packed"])
def test_bf16_load_keeps_float32_where_it_matters(state, tiny, tmp_path):
    _model("aya_vision", state, tiny).save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    block = blocks(loaded)[0]
    assert block.router.weight.dtype == torch.float32
    kept = list(block.experts.parameters()) if state == "upcycled" else [block.experts.up_proj_scale]
    assert {p.dtype for p in kept} == {torch.float32}
    assert block.gate_proj.weight.dtype == torch.bfloat16
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight


def test_concrete_class_by_name_loads_and_saves_guarded(tiny, tmp_path):
    from transformers import LlamaForCausalLM

    _model("llama", "upcycled", tiny).save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert len(blocks(loaded)) == 2
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["model_type"] == "mote_lmm"


def test_upcycled_model_trains_with_trainer(tiny, inputs, tmp_path):
    from transformers import Trainer, TrainingArguments

    model, batch = _model("aya_vision", "upcycled", tiny), inputs("aya_vision")
    before = copy.deepcopy(model.state_dict())
    rows = [{name: value[i] for name, value in {**batch, "labels": batch["input_ids"]}.items()} for i in range(2)] * 4
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".router." in name or ".experts." in name}
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, loaded(**batch).logits)


def test_float_of_an_upcycled_model_is_allowed(tiny, tmp_path):
    _model("llama", "upcycled", tiny).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.float().lm_head.weight.dtype == torch.float32


def test_from_config_builds_blocks(family, tiny, tmp_path):
    _model(family, "upcycled", tiny).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    built = mote.from_config(config)
    assert len(blocks(built)) == 2
    assert all(isinstance(b, MoteBlock) for b in blocks(built))
    again = mote.from_config(config)
    assert torch.equal(blocks(built)[0].experts.up_proj, blocks(again)[0].experts.up_proj)
    built.save_pretrained(tmp_path / "built")
    assert mote.Checkpoint.open(tmp_path / "built").state == "upcycled"
    with pytest.raises(CheckpointError, match="quantization_config"):
        mote.from_config(tiny(family).config)


def test_from_config_of_a_packed_model(tiny, inputs, tmp_path):
    _model("llama", "packed", tiny).save_pretrained(tmp_path)
    built = mote.from_config(AutoConfig.from_pretrained(tmp_path))
    with torch.no_grad():
        assert torch.isfinite(built(**inputs("llama")).logits).all()


def test_dense_checkpoint_is_not_upcycled_by_a_keyword(tiny, tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"mote\.upcycle"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=MoteQuantizationConfig())


def test_settings_survive_as_json():
    settings = MoteQuantizationConfig(layers=[0, 2], top_k=2)
    assert json.loads(settings.to_json_string()) == json.loads(json.dumps(settings.to_dict()))
    assert MoteQuantizationConfig.from_dict(settings.to_dict()).contract == settings.contract


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_lora_trains_on_a_packed_model(tiny, inputs):
    from peft import LoraConfig, get_peft_model

    model, batch = _model("llama", "packed", tiny), inputs("llama")
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    adapted.train()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = adapted(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    first = {n: p for n, p in adapted.named_parameters() if "layers.0" in n and "lora_B" in n}
    assert first
    assert all(p.abs().sum() > 0 for p in first.values())  # the gradient came through packed layers
