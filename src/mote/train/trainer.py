"""transformers' Trainer with this method's loss, sampler, parameter groups and snapshots.

Loss of one optimiser step: cross-entropy summed over the answer tokens of all its batches and divided by their
number, plus the balance loss of each batch divided by the number of batches. (Trainer's own averaging over
accumulated batches would weight the balance loss by tokens.) Logits are computed at answer positions only.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, Trainer, TrainingArguments

from mote.errors import TrainingError
from mote.model.precision import computes_in_bf16
from mote.model.vision import encoder_outputs
from mote.train.batches import IGNORED
from mote.train.config import TrainConfig

WEIGHTS = "trained.safetensors"


def answer_logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(logits [answers, V] fp32, targets [answers]) of a batch: the model's stock forward, with the vision features
    that were computed before instead of pixels, and logits at the positions whose next token is an answer's."""
    inputs: dict[str, Any] = dict(batch)
    features, labels_BT = inputs.pop("features", None), inputs.pop("labels")
    if features is not None:
        inputs["mm_encoder_outputs"] = encoder_outputs(model, features)
    keep_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    keep_BT[:, :-1] = labels_BT[:, 1:] != IGNORED
    logits = model(**inputs, logits_to_keep=keep_BT, use_cache=False).logits
    targets = labels_BT[:, 1:][keep_BT[:, :-1]]
    return logits.float().view(len(targets), -1), targets


class StageTrainer(Trainer):
    """Trains what `requires_grad` says, with snapshots that hold only that.

    learning_rates: peak rate of a parameter by its name. balance_loss: sum over the `mixtures` layers of the last
    forward pass, with its gradient, or None for a dense model; it is multiplied by `balance_coefficient`.
    last_losses: of the last optimiser step; its "balance_loss" is the mean over layers, so that 1.0 is perfect.
    """

    def __init__(
        self,
        *args: Any,
        learning_rates: Callable[[str], float],
        sampler: Any,
        balance_loss: Callable[[], Tensor] | None,
        balance_coefficient: float,
        mixtures: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._learning_rates = learning_rates
        self._sampler = sampler
        self._balance_loss = balance_loss
        self._balance_coefficient = balance_coefficient
        self._mixtures = mixtures
        self.model_accepts_loss_kwargs = True  # asks for num_items_in_batch
        self.loss_is_scaled_for_ga = True
        self.last_losses: dict[str, float] = {}
        self._losses_of = -1
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
        self._note("loss", float(loss.detach()))
        if self._balance_loss is not None:
            # The last step of an epoch may have fewer batches than are accumulated elsewhere.
            balance = self._balance_loss() / self.current_gradient_accumulation_steps
            self._note("balance_loss", float(balance.detach()) / self._mixtures)
            loss = loss + self._balance_coefficient * balance
        if not torch.isfinite(loss):
            raise self._diverged("loss", float(loss.detach()))
        return (loss, logits) if return_outputs else loss

    def _note(self, key: str, value: float) -> None:
        """Adds a batch's share to the losses of the optimiser step under way."""
        if self._losses_of != self.state.global_step:
            self._losses_of, self.last_losses = self.state.global_step, {}
        self.last_losses[key] = self.last_losses.get(key, 0.0) + value

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # Checked before the optimiser steps: weights that are NaN would end up in the next snapshot.
        if not torch.isfinite(torch.as_tensor(norm)):
            raise self._diverged("gradient's norm", float(norm))
        return norm

    def _diverged(self, what: str, value: float) -> TrainingError:
        return TrainingError(
            f"step {self.state.global_step + 1}: the {what} is {value}; lower learning_rate, or check the data with "
            "`mote data validate`"
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save reports a full disk as RuntimeError
            shutil.rmtree(folder, ignore_errors=True)
            # torch names neither file nor cause, only the place in its source that noticed
            unnamed = isinstance(error, RuntimeError) and "inline_container" in str(error)
            reason = "it came out too short, so the disk is full" if unnamed else str(error).splitlines()[0]
            raise TrainingError(
                f"{folder}: the snapshot cannot be written: {reason}; older ones are kept: free space there, and run "
                "the same command with --resume"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = {n: p.detach().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}
        save_file(trained, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        stored = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        own = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if {n: t.shape for n, t in stored.items()} != {n: p.shape for n, p in own.items()}:
            raise TrainingError(f"{resume_from_checkpoint}: snapshot of another model; delete it or use another folder")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(stored[name])


def arguments(config: TrainConfig, work: Path, device: torch.device) -> TrainingArguments:
    """The same settings in transformers' words. Snapshots go below `work`."""
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=config.warmup,  # below 1 it is a share of all steps
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_gradient_norm,
        bf16=computes_in_bf16(device, config.precision),
        **({"activation_checkpointing": True} if config.gradient_checkpointing else {}),
        # The reentrant kind would lose the gradient of the balance loss.
        **({"activation_checkpointing_kwargs": {"use_reentrant": False}} if config.gradient_checkpointing else {}),
        logging_strategy="no",  # Telemetry writes the rows
        logging_steps=config.log_every,
        save_strategy="no",  # Snapshots decides
        report_to="none",
        use_cpu=device.type == "cpu",
        seed=config.seed,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
    )
