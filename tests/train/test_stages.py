"""What each stage trains, and that nothing else moves by a single bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mote.checkpoint.accounting import component_of
from mote.checkpoint.shards import Checkpoint
from mote.data.conversation import read_conversations
from mote.errors import CheckpointError, DataError, RecipeError, TrainingError
from mote.model.features import PictureFeatures
from mote.model.opening import open_model
from mote.model.precision import autocast
from mote.train import STAGES, TrainConfig
from mote.train.batches import Collator, ConversationDataset
from mote.train.probes import held_out_loss, text_perplexity
from mote.train.run import train
from mote.train.session import Session
from mote.train.trainable import select

Settings = Callable[..., TrainConfig]


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    opened = Checkpoint.open(checkpoint)
    return {name: opened.read(name) for name in opened.tensors}


@pytest.mark.parametrize("stage", ["align", "instruct", "experts"])
def test_a_stage_moves_its_parts_and_leaves_the_rest_bit_equal(
    stage: Any, request: pytest.FixtureRequest, data: Path, settings: Settings, tmp_path: Path
) -> None:
    start = request.getfixturevalue("upcycled" if stage == "experts" else "dense")
    before = tensors(start)
    out = train(start, tmp_path / "out", settings(), stage=stage, data=data)
    after = tensors(out)
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(after[name].float(), before[name].float())}
    expected = {name for name in before if component_of(name) in STAGES[stage].trains}
    assert moved == expected
    for name, tensor in after.items():
        kept = component_of(name) in STAGES["experts"].trains
        assert tensor.dtype == (torch.float32 if kept else before[name].dtype), name


def test_masters_are_fp32_while_training(upcycled: Path, dense: Path) -> None:
    model = open_model(upcycled, dtype="auto")
    select(model, STAGES["experts"].trains)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    model = open_model(dense, dtype="auto")
    select(model, STAGES["instruct"].trains)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.model.vision_tower.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_embeddings_stay_when_they_are_told_to(dense: Path, data: Path, settings: Settings, tmp_path: Path) -> None:
    before = tensors(dense)
    after = tensors(train(dense, tmp_path / "out", settings(train_embeddings=False), stage="instruct", data=data))
    same = {name for name in before if torch.equal(after[name], before[name])}
    assert {component_of(name) for name in same} == {"embeddings", "vision_tower"}


def test_shared_experts_train_only_in_mixtures_that_say_so(
    tiny: Callable[..., Any], write_checkpoint: Callable[..., Path], data: Path, settings: Settings, tmp_path: Path
) -> None:
    start = write_checkpoint(
        tiny("aya_vision"), vision=True, upcycled=True, train_shared=True, placement="explicit", layers=(1,)
    )
    before = tensors(start)
    after = tensors(train(start, tmp_path / "out", settings(), stage="experts", data=data))
    moved = {name for name in before if not torch.equal(after[name].float(), before[name].float())}
    shared = {name for name in before if ".layers.1.mlp." in name}
    assert moved == shared


def test_a_text_only_model_trains(text_only: Path, data: Path, settings: Settings, tmp_path: Path) -> None:
    rows = [row for row in map(json.loads, (data / "train.jsonl").read_text().splitlines()) if "image" not in row]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = train(text_only, tmp_path / "out", settings(epochs=3), stage="instruct", data=tmp_path / "text.jsonl")
    assert not torch.equal(tensors(out)["model.norm.weight"], tensors(text_only)["model.norm.weight"])
    with pytest.raises(TrainingError, match="nothing to train"):
        train(text_only, tmp_path / "align", settings(), stage="align", data=tmp_path / "text.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl:1: has a picture, but .* is a text-only model"):
        train(text_only, tmp_path / "seen", settings(), stage="instruct", data=data)


@pytest.mark.parametrize(("stage", "start"), [("experts", "dense"), ("align", "upcycled"), ("instruct", "upcycled")])
def test_a_checkpoint_in_another_state_is_refused(
    stage: Any, start: str, request: pytest.FixtureRequest, data: Path, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=rf"state '{start}', but Stage .* starts from"):
        train(request.getfixturevalue(start), tmp_path / "out", settings(), stage=stage, data=data)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stored_numbers_are_those_that_were_probed(
    precision: Any, upcycled: Path, data: Path, settings: Settings, tmp_path: Path, probe_text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    trained: list[Any] = []
    store = Session.store
    monkeypatch.setattr(Session, "store", lambda self, folder: (trained.append(self.model), store(self, folder)))
    config = settings(probe_conversations=8, precision=precision)
    out = train(upcycled, tmp_path / "out", config, stage="experts", data=data)
    report = json.loads((out / "training.json").read_text())
    assert report["before"] != report["after"]
    assert "forward" not in vars(trained[0])  # Trainer's autocast is off again
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32 if precision == "fp32" else "auto")
    experts = [p.dtype for name, p in model.named_parameters() if component_of(name) in STAGES["experts"].trains]
    assert set(experts) == {torch.float32}
    processor = AutoProcessor.from_pretrained(out)
    features = PictureFeatures(model, processor, None)
    held_out = ConversationDataset(read_conversations(data / "val.jsonl"), processor, features, image_tokens=4)
    with autocast(torch.device("cpu"), precision):
        loss = held_out_loss(model, held_out, Collator(0), 3)
        perplexity = text_perplexity(model, processor.tokenizer, probe_text)
    assert report["after"] == {"held_out_loss": loss, "text_perplexity": perplexity}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"warmup": 1.0}, "warmup=1.0"),
        ({"max_steps": -1}, "max_steps=-1"),
        ({"epochs": 0.0}, "nothing would be trained"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        TrainConfig(**changes)


def test_a_warm_start_needs_a_stage_that_trains_the_connector() -> None:
    with pytest.raises(RecipeError, match="does not train the connector"):
        TrainConfig(warm_start_epochs=1).resolved(STAGES["experts"])
    assert TrainConfig().resolved(STAGES["align"]).connector_learning_rate == 1e-3
