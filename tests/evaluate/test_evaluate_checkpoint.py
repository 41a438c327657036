"""Checkpoints of every state, scored from disk to disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mote.errors import CheckpointError, DataError
from mote.evaluate.config import EvaluateConfig
from mote.evaluate.run import evaluate_blind, evaluate_checkpoint, load
from mote.model.opening import open_model, open_processor
from mote.model.precision import computes_in_bf16

CONFIG = EvaluateConfig(samples=4, dtype="float32", max_tokens=3)


def test_a_dense_checkpoint_is_scored_and_written(checkpoint: Path, mix: Path, tmp_path: Path) -> None:
    out, features = tmp_path / "scores", tmp_path / "features"
    result = evaluate_checkpoint(checkpoint, mix / "test.jsonl", CONFIG, out=out, features=features, progress=False)
    assert set(result.skills) == {"color", "counting", "words"}
    assert {score.n for score in result.skills.values()} == {4}
    assert result.average.value == pytest.approx(sum(s.value for s in result.skills.values()) / 3)
    written = json.loads((out / "result.json").read_text())
    assert written["skills"]["words"]["value"] == result.skills["words"].value
    assert written["provenance"]["state"] == "dense"
    log = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(log) == 12
    assert (mix / log[0]["image"]).is_file()
    shown = [json.loads(line) for line in (out / "shown.jsonl").read_text().splitlines()]
    assert [row["skill"] for row in shown] == ["color", "color", "color", "color"]  # each picture is shown once
    assert all(row["given"] is not None for row in shown)
    again = evaluate_checkpoint(
        checkpoint, mix / "test.jsonl", CONFIG, out=out, features=features, force=True, progress=False
    )
    assert again.skills == result.skills
    with pytest.raises(CheckpointError, match=str(out)):
        evaluate_checkpoint(checkpoint, mix / "test.jsonl", CONFIG, out=out, progress=False)


def test_a_mixture_tells_where_its_tokens_went_and_packing_changes_no_score(
    checkpoint: Path, mix: Path, tmp_path: Path
) -> None:
    from mote.compress.config import PackConfig
    from mote.compress.stream import pack_checkpoint
    from mote.upcycle.config import UpcycleConfig
    from mote.upcycle.stream import upcycle_checkpoint

    upcycle_checkpoint(checkpoint, tmp_path / "upcycled", UpcycleConfig(num_experts=3))
    pack_checkpoint(tmp_path / "upcycled", tmp_path / "packed", PackConfig())
    upcycled, packed = (
        evaluate_checkpoint(tmp_path / name, mix / "test.jsonl", CONFIG, progress=False)
        for name in ("upcycled", "packed")
    )
    for before, after in zip(upcycled.answered, packed.answered, strict=True):
        assert after.given == before.given
        assert after.logprob == pytest.approx(before.logprob, abs=1e-5)
    assert upcycled.skills == packed.skills
    assert [row["layer"] for row in packed.routing] == [0, 1]
    for row in packed.routing:
        assert len(row["load_text"]) == len(row["load_image"]) == 3
        # Four image tokens of every picture: 4 prompts with choices, 4 exact checks, 4 generations.
        assert sum(row["load_image"]) == 12 * 4
        assert sum(row["load_text"]) > 0
        assert 0 < row["entropy"] < 1.1


def test_blind_is_the_better_of_majority_and_featureless_model(checkpoint: Path, mix: Path, tmp_path: Path) -> None:
    out = tmp_path / "blind"
    result = evaluate_blind(checkpoint, mix, CONFIG, question_only=checkpoint, out=out, progress=False)
    provenance = json.loads((out / "result.json").read_text())["provenance"]
    candidates = provenance["candidates"]
    # "two" is the majority of the training split; the test split holds it once in four.
    assert candidates["majority answer of the training split"]["counting"] == 0.25
    assert candidates["the model without features"] == candidates["a model trained without pictures"]
    for skill, score in result.skills.items():
        assert score.value == max(scores[skill] for scores in candidates.values())
    assert set(provenance["guesser"]) == {"color", "counting", "words"}


def test_what_cannot_be_scored_is_one_line(checkpoint: Path, mix: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl"):
        evaluate_checkpoint(checkpoint, tmp_path / "none.jsonl", CONFIG, progress=False)
    bad = tmp_path / "bad.jsonl"
    row = {"id": "1", "image": "gone.png", "conversations": [{"from": "human", "value": "<image>\nWhat ?"},
                                                             {"from": "gpt", "value": "red"}]}  # fmt: skip
    bad.write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"gone\.png"):
        evaluate_checkpoint(checkpoint, bad, CONFIG, progress=False)
    with pytest.raises(CheckpointError):
        evaluate_checkpoint(tmp_path / "nothing", mix / "test.jsonl", CONFIG, progress=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_model_stored_in_bf16_computes_in_the_dtype_asked_for(checkpoint: Path, tmp_path: Path, dtype: Any) -> None:
    stored = open_model(checkpoint).to(torch.bfloat16)
    stored.save_pretrained(tmp_path / "bf16")
    open_processor(checkpoint, stored).save_pretrained(tmp_path / "bf16")
    model, _ = load(tmp_path / "bf16", EvaluateConfig(dtype=dtype))
    in_bf16 = dtype == "bfloat16" or (dtype == "auto" and computes_in_bf16(torch.device("cpu")))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16 if in_bf16 else torch.float32}
    for widened, parameter in zip(model.parameters(), stored.parameters(), strict=True):
        assert torch.equal(widened.float(), parameter.float())
