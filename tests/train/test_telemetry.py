"""What a run records, and that each warning comes when it should and stays away when it should not."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mote.errors import DataError
from mote.model.block import blocks
from mote.train import TrainConfig
from mote.train.run import train
from mote.train.session import Session
from mote.train.telemetry import Telemetry, TernaryWatch
from mote.train.warm_start import answer_words, warm_start

Settings = Callable[..., TrainConfig]
DENSE_KEYS = {"step", "loss", "lr", "seconds"}
MIXTURE_KEYS = {"balance_loss", "load_max", "load_min", "router_entropy", "mean_gate", "zeros", "flips"}


def rows_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]


def warnings_of(out: Path) -> list[str]:
    return list(json.loads((out / "training.json").read_text())["warnings"])


def test_rows_of_a_mixture_hold_everything(upcycled: Path, data: Path, settings: Settings, tmp_path: Path) -> None:
    out = train(upcycled, tmp_path / "out", settings(epochs=2.0, log_every=3), stage="experts", data=data)
    rows = rows_of(out)
    assert [row["step"] for row in rows] == [3, 6, 8]
    for row in rows:
        assert row.keys() == DENSE_KEYS | MIXTURE_KEYS
        assert 0 <= row["load_min"] <= 0.25 <= row["load_max"] <= 1
        assert 0 < row["router_entropy"] <= torch.tensor(4.0).log().item() + 1e-6
        assert 0.25 <= row["mean_gate"] <= 1
        assert 0.9 < row["balance_loss"] < 4
        assert 0.1 < row["zeros"] < 0.6
        assert 0 < row["flips"] < 1
    assert rows[0]["lr"] == pytest.approx(1e-2, rel=0.3)
    events = list((out / "tensorboard").iterdir())
    assert len(events) == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == (DENSE_KEYS | MIXTURE_KEYS) - {"step"}
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


def test_a_dense_model_has_no_routing(dense: Path, data: Path, settings: Settings, tmp_path: Path) -> None:
    out = train(dense, tmp_path / "out", settings(), stage="instruct", data=data)
    assert all(row.keys() == DENSE_KEYS for row in rows_of(out))
    assert warnings_of(out) == []


def test_a_good_run_warns_of_nothing(
    tiny: Callable[..., Any], write_checkpoint: Callable[..., Path], data: Path, settings: Settings, tmp_path: Path
) -> None:
    start = write_checkpoint(tiny("aya_vision"), vision=True, upcycled=True, num_experts=2, balance_coefficient=1.0)
    config = settings(epochs=4.0, batch_size=6, learning_rate=5e-3, probe_conversations=4)
    out = train(start, tmp_path / "out", config, stage="experts", data=data)
    report = json.loads((out / "training.json").read_text())
    assert report["warnings"] == []
    assert report["before"].keys() == report["after"].keys() == {"text_perplexity", "held_out_loss"}
    assert report["after"]["held_out_loss"] < report["before"]["held_out_loss"]
    assert report["steps"] == 8


def test_no_flips_and_no_progress_are_warned_of(upcycled: Path, data: Path, settings: Settings, tmp_path: Path) -> None:
    config = settings(epochs=2.0, learning_rate=1e-30)  # 0 would take the stage's own
    out = train(upcycled, tmp_path / "out", config, stage="experts", data=data)
    assert [row["flips"] for row in rows_of(out)] == [0] * 8
    found = warnings_of(out)
    assert sum("no ternary weight has changed" in warning for warning in found) == 1
    assert sum(warning.startswith("underfitting: the experts' loss went from") for warning in found) == 1


def test_collapse_is_warned_of(
    upcycled: Path, data: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Session.run

    def run(self: Session, *args: Any) -> Any:
        """Layer 1 routes every token to expert 0: of two opposite rows one has a logit that is not below 0."""
        router = blocks(self.model)[1].router
        router.register_forward_pre_hook(lambda module, inputs: (inputs[0].abs(),))
        with torch.no_grad():
            router.weight.fill_(-10)
            router.weight[0] = 10
        return original(self, *args)

    monkeypatch.setattr(Session, "run", run)
    out = train(upcycled, tmp_path / "out", settings(), stage="experts", data=data)
    assert rows_of(out)[-1]["load_max"] == 1
    (warning,) = [w for w in warnings_of(out) if "collapse" in w]
    assert re.match(r"experts collapse: in layers \[(0, )?1\] one expert gets under 2.5% of the tokens", warning)


def test_forgetting_is_warned_of(dense: Path, data: Path, settings: Settings, tmp_path: Path) -> None:
    shown = []
    for rate in (1e-5, 5e-2):
        config = settings(epochs=3.0, learning_rate=rate, probe_conversations=4)
        out = train(dense, tmp_path / f"{rate}", config, stage="instruct", data=data)
        shown.append([w for w in warnings_of(out) if w.startswith("forgetting: ")])
    assert shown[0] == []
    assert shown[1][0].startswith("forgetting: text perplexity went from")


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({"text_perplexity": 11.9, "held_out_loss": 2.3}, 0),
        ({"text_perplexity": 12.1, "held_out_loss": 2.3}, 1),
        ({"text_perplexity": 12.1, "held_out_loss": 2.5}, 2),
    ],
)
def test_forgetting_needs_a_fifth(after: dict[str, float], expected: int, tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, title="t", losses=dict)
    telemetry.judge({"text_perplexity": 10.0, "held_out_loss": 2.0}, after)
    assert len(telemetry.warnings) == expected


def test_without_its_text_the_probe_says_so_and_training_goes_on(
    upcycled: Path, data: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise DataError("pip could not download it; check the network")

    monkeypatch.setattr("mote.train.session.english_text", missing)
    out = train(upcycled, tmp_path / "out", settings(probe_conversations=4), stage="experts", data=data)
    report = json.loads((out / "training.json").read_text())
    assert report["before"].keys() == report["after"].keys() == {"held_out_loss"}
    assert "text perplexity is not measured: pip could not download it; check the network" in report["warnings"]


def test_the_watch_counts_zeros_and_flips() -> None:
    q = torch.tensor([1, 0, 0, -1], dtype=torch.int8).repeat(2, 32, 1)
    watch = TernaryWatch(lambda: {"a": q})
    assert watch.look() == {"zeros": 0.5}
    q[:, :, 0] = 0  # in place, as a cache may do
    assert watch.look() == {"zeros": 0.75, "flips": 0.25}
    assert watch.look() == {"zeros": 0.75, "flips": 0.0}
    assert TernaryWatch(dict).look() == {}


def test_the_warm_start_lowers_its_loss_and_moves_only_the_connector(
    dense: Path, data: Path, settings: Settings, tmp_path: Path
) -> None:
    from mote.train import STAGES

    config = settings(warm_start_epochs=8, warm_start_learning_rate=1e-2).resolved(STAGES["align"])
    files = (data / "train.jsonl", None)
    session = Session.open(dense, config, STAGES["align"], files, tmp_path / "features")
    before = {name: p.detach().clone() for name, p in session.model.named_parameters()}
    losses: list[float] = []
    connector = session.model.model.multi_modal_projector
    session.warm_start()
    moved = {name for name, p in session.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"model.multi_modal_projector.{name}" for name, _ in connector.named_parameters()}

    from mote.model.vision import connect

    losses = warm_start(
        lambda features: connect(session.model, features),
        list(connector.parameters()),
        session.model.get_input_embeddings().weight.detach(),
        lambda word: session.tokenizer.encode(word, add_special_tokens=False),
        session.train_set.conversations,
        session.train_set.features,
        epochs=1,
        learning_rate=1e-9,
        seed=0,
    )
    assert losses[0] < 0.7 * torch.tensor(3.0).log().item()  # three colours by chance


def test_the_warm_start_learns_short_names_only() -> None:
    def row(image: str | None, *answers: str) -> Any:
        turns = [SimpleNamespace(answer=answer) for answer in answers]
        return SimpleNamespace(image=image, turns=turns)

    words, targets = answer_words(
        [row("a", "red", "2"), row(None, "dog"), row("b", "a cat sits on the mat"), row("c", "blue", "red")]
    )
    assert words == ["blue", "red"]
    assert targets == [(0, [1]), (3, [0, 1])]
