"""The loss of one optimiser step, against the plainest way to compute it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoProcessor

from mote.data.conversation import Conversation, Turn, read_conversations
from mote.errors import DataError, TrainingError
from mote.model.block import context_of
from mote.model.features import PictureFeatures
from mote.model.opening import open_model
from mote.model.precision import widen
from mote.train import STAGES, TrainConfig
from mote.train.batches import IGNORED, Collator, ConversationDataset, EpochSampler
from mote.train.run import train
from mote.train.trainable import select
from mote.train.trainer import StageTrainer, answer_logits, arguments

Settings = Callable[..., TrainConfig]
CPU = torch.device("cpu")


class Fixed:
    """The conversations in order: what a sampler gives when nothing is left to chance."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __iter__(self) -> Any:
        return iter(range(self._size))

    def __len__(self) -> int:
        return self._size


def open_set(checkpoint: Path, data: Path, **options: Any) -> tuple[Any, ConversationDataset]:
    model = open_model(checkpoint, dtype="auto")
    select(model, STAGES["experts"].trains)
    widen(model, "fp32")
    processor = AutoProcessor.from_pretrained(checkpoint)
    features = PictureFeatures(model, processor, None)
    items = read_conversations(data / "train.jsonl")
    return model.train(), ConversationDataset(items, processor, features, image_tokens=4, **options)


def gradients(
    checkpoint: Path, data: Path, config: TrainConfig, work: Path, *, balance: float = 1.0
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradients of the first optimiser step, before the optimiser sees them, and its losses."""
    from transformers import TrainerCallback

    model, conversations = open_set(checkpoint, data)
    found: dict[str, torch.Tensor] = {}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    context = context_of(model)
    trainer = StageTrainer(
        model=model,
        args=arguments(config, work, CPU),
        train_dataset=conversations,
        data_collator=Collator(0),
        learning_rates=lambda name: 1e-3,
        sampler=Fixed(len(conversations)),
        balance_loss=context.balance_loss,
        balance_coefficient=balance,
        mixtures=2,
        callbacks=[Look()],
    )
    trainer.train()
    return found, trainer.last_losses


def test_logits_at_answers_are_those_of_the_whole_sequence_and_only_answers_count(upcycled: Path, data: Path) -> None:
    model, conversations = open_set(upcycled, data)
    rows = [conversations[i] for i in range(6)]
    assert [row["features"] is None for row in rows] == [False, False, True] * 2
    batch = Collator(0)(rows)
    assert batch["features"].shape[0] == 4
    logits, targets = answer_logits(model.eval(), batch)
    labels = batch["labels"]
    full = torch.cat(
        [
            answer_logits(
                model,
                {
                    "input_ids": row["input_ids"][None],
                    "attention_mask": torch.ones(1, len(row["input_ids"]), dtype=torch.long),
                    "labels": row["input_ids"].clone()[None],
                    **({} if row["features"] is None else {"features": row["features"][None]}),
                },
            )[0][row["labels"][1:] != IGNORED]
            for row in rows
        ]
    )  # each row alone, with logits everywhere
    torch.testing.assert_close(logits, full, rtol=1e-4, atol=1e-5)
    tokenizer = conversations._renderer._tokenizer
    said = tokenizer.decode(targets.tolist()).replace("<|im_end|>", "|").split("|")
    answers = [turn.answer for c in conversations.conversations[:6] for turn in c.turns]
    assert [text.strip() for text in said if text.strip()] == answers
    assert (labels != IGNORED).sum() == len(targets)


def test_every_row_gets_its_own_picture(upcycled: Path, data: Path) -> None:
    """Rows in another order give the same loss per row: no row reads its neighbour's picture."""
    model, conversations = open_set(upcycled, data)
    model.eval().requires_grad_(False)

    def losses(order: Sequence[int]) -> dict[int, float]:
        batch = Collator(0)([conversations[i] for i in order])
        logits, targets = answer_logits(model, batch)
        each = functional.cross_entropy(logits, targets, reduction="none")
        counts = (batch["labels"] != IGNORED).sum(1).tolist()
        return {i: float(part.sum()) for i, part in zip(order, each.split(counts), strict=True)}

    forward, backward = losses([0, 2, 1, 5, 4]), losses([4, 5, 1, 2, 0])
    assert forward == pytest.approx(backward, rel=1e-5)
    swapped = Collator(0)([conversations[i] for i in (0, 1)])
    logits, _ = answer_logits(model, swapped)
    swapped["features"] = swapped["features"].flip(0)
    assert not torch.equal(logits, answer_logits(model, swapped)[0])


def test_accumulated_batches_are_one_large_batch(
    upcycled: Path, data: Path, settings: Settings, tmp_path: Path
) -> None:
    one_batch = settings(max_steps=1, max_gradient_norm=0.0, batch_size=12)
    four = settings(max_steps=1, max_gradient_norm=0.0, batch_size=3, accumulate=4)
    large, loss = gradients(upcycled, data, one_batch, tmp_path, balance=0.0)
    small, parts = gradients(upcycled, data, four, tmp_path, balance=0.0)
    assert parts["loss"] == pytest.approx(loss["loss"], rel=1e-5)
    assert large.keys() == small.keys()
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_balance_loss_counts_once_per_step(upcycled: Path, data: Path, settings: Settings, tmp_path: Path) -> None:
    """It is not linear in the tokens: of four batches the mean is taken, whatever number of answers they hold."""
    four = settings(max_steps=1, max_gradient_norm=0.0, batch_size=3, accumulate=4)
    without, _ = gradients(upcycled, data, four, tmp_path, balance=0.0)
    found, losses = gradients(upcycled, data, four, tmp_path, balance=1.0)
    model, conversations = open_set(upcycled, data)
    values = []
    for start in range(0, 12, 3):
        answer_logits(model, Collator(0)([conversations[i] for i in range(start, start + 3)]))
        balance = context_of(model).balance_loss() / 4
        balance.backward()
        values.append(float(balance.detach()))
    assert losses["balance_loss"] == pytest.approx(sum(values) / 2, rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            added = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found[name] - without[name], added, rtol=1e-3, atol=1e-6, msg=name)


def test_checkpointing_activations_changes_no_number(
    upcycled: Path, data: Path, settings: Settings, tmp_path: Path
) -> None:
    plain, loss = gradients(upcycled, data, settings(max_steps=1), tmp_path)
    again, same = gradients(upcycled, data, settings(max_steps=1, gradient_checkpointing=True), tmp_path)
    assert same == loss
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_gradients_are_those_of_the_stated_loss(upcycled: Path, data: Path, settings: Settings, tmp_path: Path) -> None:
    found, losses = gradients(upcycled, data, settings(max_steps=1, max_gradient_norm=0.0), tmp_path)
    model, conversations = open_set(upcycled, data)
    logits, targets = answer_logits(model, Collator(0)([conversations[i] for i in range(3)]))
    loss = functional.cross_entropy(logits, targets)
    balance = context_of(model).balance_loss()
    (loss + balance).backward()
    assert losses == {
        "loss": pytest.approx(float(loss.detach())),
        "balance_loss": pytest.approx(float(balance.detach()) / 2),
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-8, msg=name)


def test_a_loss_that_is_not_finite_stops_in_one_line(
    tiny: Callable[..., Any], write_checkpoint: Callable[..., Path], data: Path, settings: Settings, tmp_path: Path
) -> None:
    model = tiny("aya_vision")
    model.model.language_model.norm.weight.data.fill_(3e38)  # finite, but no logit of it is
    start = write_checkpoint(model, vision=True)
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan; lower learning_rate") as caught:
        train(start, tmp_path / "out", settings(), stage="instruct", data=data)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_do(
    norm: float, dense: Path, data: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StageTrainer.compute_loss

    class Explode(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("nan")

    monkeypatch.setattr(
        StageTrainer, "compute_loss", lambda self, *args, **kwargs: Explode.apply(original(self, *args, **kwargs))
    )
    with pytest.raises(TrainingError, match="step 1: the gradient's norm is nan"):
        train(dense, tmp_path / "out", settings(max_gradient_norm=norm), stage="align", data=data)


def test_a_blind_stage_sees_zeros_in_place_of_pictures(upcycled: Path, data: Path) -> None:
    _, seeing = open_set(upcycled, data)
    _, blind = open_set(upcycled, data, blind=True)
    assert torch.equal(blind[0]["input_ids"], seeing[0]["input_ids"])
    assert blind[0]["features"].shape == seeing[0]["features"].shape
    assert not blind[0]["features"].any()
    assert seeing[0]["features"].any()


def conversation(*lengths: int, image: Path | None = None) -> Conversation:
    turns = tuple(Turn(question=" ".join(["cat"] * n), answer="dog") for n in lengths)
    return Conversation(id="0", image=image, turns=turns, where="rows.jsonl:7")


def test_long_conversations_lose_their_last_turns(dense: Path) -> None:
    processor = AutoProcessor.from_pretrained(dense)

    def ids(*lengths: int, **options: Any) -> list[int]:
        dataset = ConversationDataset([conversation(*lengths)], processor, None, image_tokens=4, **options)
        return dataset[0]["input_ids"].tolist()

    assert ids(3, 30, max_length=20) == ids(3)
    assert ids(3, 4, turns=1) == ids(3)
    assert len(ids(3, 4, max_length=200)) > len(ids(3))
    with pytest.raises(DataError, match=r"rows.jsonl:7: the first turn takes \d+ tokens, more than max_length=20"):
        ids(30, max_length=20)


def test_too_few_conversations_for_a_batch_are_refused(
    dense: Path, data: Path, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"train.jsonl: 12 conversations are fewer than batch_size=13; lower it"):
        train(dense, tmp_path / "out", settings(batch_size=13), stage="align", data=data)


def test_batches_hold_conversations_of_similar_length() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 1000, (323,), generator=generator).tolist()

    def batches(**options: Any) -> list[list[int]]:
        order = list(EpochSampler(323, seed=0, batch_size=10, **options))
        assert sorted(order) == list(range(323))
        return [order[i : i + 10] for i in range(0, 323, 10)]

    def spread(batches: list[list[int]]) -> float:
        return sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches) / len(batches)

    assert spread(batches(lengths=lengths)) < 0.25 * spread(batches())
    assert len(batches(lengths=lengths)[-1]) == 3


def test_epochs_differ_and_repeat() -> None:
    sampler, again = (EpochSampler(40, seed=3, batch_size=4, lengths=[1] * 40) for _ in range(2))
    first = list(sampler)
    sampler.set_epoch(1)
    again.set_epoch(1)
    assert list(sampler) == list(again) != first
    assert list(EpochSampler(40, seed=4, batch_size=4)) != list(EpochSampler(40, seed=3, batch_size=4))
