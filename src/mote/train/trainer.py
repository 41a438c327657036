"""transformers' Trainer with this method's loss, sampler, parameter groups and snapshots.

Loss of one optimiser step: cross-entropy summed over the answer tokens of all its batches and divided by their
number, plus the balance loss of each batch divided by the number of batches. (Trainer's own averaging over
accumulated batches would weight the balance loss by tokens.) Logits are computed at answer positions only.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from mote.checkpoint.atomic import write_file
from mote.errors import TrainingError
from mote.model.vision import encoder_outputs
from mote.train.batches import IGNORED

SNAPSHOT_MARK = "complete.json"
"""Written last into a snapshot: one without it was cut short and is not resumed from."""
WEIGHTS = "trained.safetensors"


def answer_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(logits [answers, V], targets [answers]) of a batch: the model's stock forward, with the vision features that
    were computed before instead of pixels, and logits at the positions whose next token is an answer's."""
    inputs: dict[str, Any] = dict(batch)
    features, labels_BT = inputs.pop("features", None), inputs.pop("labels")
    if features is not None:
        inputs["mm_encoder_outputs"] = encoder_outputs(model, features)
    keep_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    keep_BT[:, :-1] = labels_BT[:, 1:] != IGNORED
    logits = model(**inputs, logits_to_keep=keep_BT, use_cache=False).logits
    return logits.float(), labels_BT[:, 1:][keep_BT[:, :-1]]


class StageTrainer(Trainer):  # type: ignore[misc]
    """Trains what `requires_grad` says, with snapshots that hold only that.

    learning_rates: peak rate of a parameter by its name. balance_loss: sum over layers of the last forward pass, with
    its gradient, or None for a dense model; multiplied by `balance_coefficient`.
    """

    def __init__(
        self,
        *args: Any,
        learning_rates: Callable[[str], float],
        sampler: Any,
        balance_loss: Callable[[], Tensor] | None,
        balance_coefficient: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._learning_rates = learning_rates
        self._sampler = sampler
        self._balance_loss = balance_loss
        self._balance_coefficient = balance_coefficient
        self.model_accepts_loss_kwargs = True  # asks for num_items_in_batch
        self.loss_is_scaled_for_ga = True
        self.last_losses: dict[str, float] = {}
        self.optimizer: torch.optim.Optimizer | None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            by_rate: dict[float, list[nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    by_rate.setdefault(self._learning_rates(name), []).append(parameter)
            groups = [{"params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
            self.optimizer = torch.optim.AdamW(
                groups,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                weight_decay=self.args.weight_decay,
                fused=True,
            )
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        logits, targets = answer_logits(model, inputs)
        count = num_items_in_batch if num_items_in_batch is not None else max(1, targets.numel())
        loss = functional.cross_entropy(logits, targets, reduction="sum") / count
        self.last_losses = {"loss": float(loss.detach()) * self.args.gradient_accumulation_steps}
        if self._balance_loss is not None:
            balance = self._balance_loss()
            self.last_losses["balance_loss"] = float(balance.detach())
            loss = loss + self._balance_coefficient * balance / self.args.gradient_accumulation_steps
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is {float(loss)}; lower learning_rate, or check the data "
                "with `mote data validate`"
            )
        return (loss, logits) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = {n: p.detach().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}
        save_file(trained, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        stored = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        own = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if stored.keys() != own.keys():
            raise TrainingError(f"{resume_from_checkpoint}: snapshot of another model; delete it or use another folder")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(stored[name])


class Snapshots(TrainerCallback):  # type: ignore[misc]
    """Saves every so many minutes and at Ctrl-C, and marks a snapshot when it is whole.

    interrupted: set by the signal handler of `run`; the step under way is finished and saved first.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = minutes * 60 or float("inf")
        self._last = time.monotonic()
        self.interrupted = False

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        elif time.monotonic() - self._last > self._seconds:
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> Any:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        for path in folder.iterdir():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        write_file(folder / SNAPSHOT_MARK, json.dumps({"step": state.global_step}))
        for older in snapshots(folder.parent):
            if older != folder:
                shutil.rmtree(older)
        self._last = time.monotonic()
        return control


def snapshots(work: Path) -> list[Path]:
    """Snapshot folders under `work`, oldest first, whole or not."""
    found = [p for p in work.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def newest_snapshot(work: Path) -> Path | None:
    """The newest whole snapshot under `work`; those that a kill cut short are deleted."""
    whole = []
    for folder in snapshots(work):
        if (folder / SNAPSHOT_MARK).is_file():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return whole[-1] if whole else None
