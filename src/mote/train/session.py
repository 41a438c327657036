"""A model with its data, ready to train: what one stage needs while it runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mote.checkpoint.accounting import component_of
from mote.data.conversation import Conversation, read_conversations
from mote.data.text import english_text
from mote.errors import CheckpointError, DataError, MoteError, TrainingError
from mote.model.block import blocks, context_of
from mote.model.experts import FloatExperts
from mote.model.families import PROJECTIONS, anatomy
from mote.model.features import PictureFeatures
from mote.model.opening import open_model, open_processor
from mote.model.precision import autocast, device_of, widen
from mote.model.vision import connect
from mote.train.batches import Collator, ConversationDataset, EpochSampler
from mote.train.config import Stage, TrainConfig
from mote.train.probes import held_out_loss, text_perplexity
from mote.train.snapshots import Snapshots, finish_step_on_interrupt, read_mark
from mote.train.telemetry import Telemetry, TernaryWatch, progress_bar
from mote.train.trainable import dtypes_of, select, settle
from mote.train.trainer import StageTrainer, arguments
from mote.train.warm_start import warm_start

EAGER_TOKENS = 128
"""Up to this length a CPU trains with eager attention: the backward pass of its flash kernel is the slower one there.
CPU seconds of a step of 16 rows, 4 layers, 9 heads of 64, one thread: at 90 tokens eager 0.50-0.61, sdpa 0.57-0.65; at
250 tokens eager 1.86-1.88, sdpa 1.55-1.69."""


@dataclass(kw_only=True)
class Session:
    """One stage's model, processor, data and settings. dtypes: of the parameters as they are stored."""

    model: PreTrainedModel
    processor: Any
    train_set: ConversationDataset
    probe_set: ConversationDataset | None
    device: torch.device
    config: TrainConfig
    stage: Stage
    dtypes: dict[str, torch.dtype]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(
        cls, checkpoint: Path, config: TrainConfig, stage: Stage, files: tuple[Path, Path | None], features: Path
    ) -> "Session":
        """Load model and data, set what trains (in fp32), and fill the feature cache.

        files: training conversations, and held-out ones for the probe. features: folder of the feature cache.
        """
        device = device_of(config.device)
        if device.index:
            raise MoteError(f"device={config.device!r}: the first visible one trains; choose by CUDA_VISIBLE_DEVICES")
        model = open_model(checkpoint, dtype="auto").to(device)
        if broken := _not_finite(model):
            raise CheckpointError(f"{checkpoint}: {broken} holds NaN or Inf; train or fetch the checkpoint again")
        dtypes = dtypes_of(model)
        select(model, stage.trains if config.train_embeddings else stage.trains - {"embeddings"})
        widen(model, config.precision)
        model.train()
        processor = open_processor(checkpoint, model)
        conversations, held_out = _conversations(*files, config)
        pictured = [c for c in (*conversations, *held_out) if c.image is not None]
        source: PictureFeatures | None = None
        image_tokens = 0
        if pictured:
            if anatomy(model).vision_tower is None:
                raise DataError(f"{pictured[0].where}: has a picture, but {checkpoint} is a text-only model")
            source = PictureFeatures(model, processor, features if config.cache_features else None)
            pictures = [c.image for c in pictured if c.image is not None]
            with progress_bar("Vision features") as bar:
                task = bar.add_task("", total=None, note="")
                source.fill(pictures, lambda done, total: bar.update(task, completed=done, total=total))
                bar.update(task, completed=len(pictures), total=len(pictures))  # those the cache had included
            with torch.no_grad(), autocast(device, config.precision):
                image_tokens = connect(model, source(pictures[:1])).shape[1]

        def dataset(items: Sequence[Conversation]) -> ConversationDataset:
            return ConversationDataset(
                items,
                processor,
                source,
                image_tokens=image_tokens,
                blind=config.blind,
                turns=config.turns,
                max_length=config.max_length,
            )

        return cls(
            model=model,
            processor=processor,
            train_set=dataset(conversations),
            probe_set=dataset(held_out) if held_out else None,
            device=device,
            config=config,
            stage=stage,
            dtypes=dtypes,
        )

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def collate(self) -> Collator:
        """Padding is masked, so that any id does where the tokenizer has none of its own."""
        pad = self.tokenizer.pad_token_id
        return Collator(next((i for i in (pad, self.tokenizer.eos_token_id) if i is not None), 0))

    def warm_start(self) -> None:
        """Contrastive warm start of the connector (see the module of that name); nothing without one."""
        connector = anatomy(self.model).connector
        if connector is None:
            return

        def seen(features: Tensor) -> Tensor:
            # One context a step: inside of it autocast keeps the bf16 copies of the weights that it made first.
            with autocast(self.device, self.config.precision):
                return connect(self.model, features)

        with progress_bar("Warm start") as bar:
            task = bar.add_task("", total=100, note="")
            warm_start(
                seen,
                list(connector.parameters()),
                self.model.get_input_embeddings().weight.detach(),
                lambda word: self.tokenizer.encode(word, add_special_tokens=False),
                self.train_set.conversations,
                self.train_set.features,
                epochs=self.config.warm_start_epochs,
                learning_rate=self.config.warm_start_learning_rate,
                seed=self.config.seed,
                progress=lambda done, loss: bar.update(task, completed=int(100 * done) + 1, note=f"loss {loss:.3f}"),
            )
            bar.update(task, completed=100)

    def run(self, work: Path, logs: Path, snapshot: Path | None, key: str) -> dict[str, Any]:
        """Train from the start or from `snapshot`; returns what `training.json` holds.

        key: names the run in its snapshots. Raises KeyboardInterrupt after Ctrl-C, once a snapshot is on disk.
        """
        context = context_of(self.model) if self.stage.accepts == "upcycled" else None
        trainer = self._trainer(work)
        telemetry = Telemetry(
            logs,
            title=self.stage.title,
            losses=lambda: trainer.last_losses,
            routing=context.statistics if context else None,
            watch=TernaryWatch(lambda: _ternary_weights(self.model)) if context else None,
        )
        guard = Snapshots(self.config.save_minutes, key)
        for callback in (telemetry, guard):  # a snapshot is marked as whole last
            trainer.add_callback(callback)
        if snapshot is None:
            telemetry.before = self.probe()
        else:
            telemetry.restore(snapshot)
        try:
            steps = self._train(trainer, guard, snapshot)
        finally:
            telemetry.close()
        # What the probe sees is what will be stored.
        settle(self.model, self.dtypes)
        if broken := _not_finite(self.model):
            raise TrainingError(f"step {steps}: {broken} holds NaN or Inf; lower learning_rate")
        widen(self.model, self.config.precision)
        after = self.probe()
        telemetry.judge(telemetry.before, after)
        return {
            "before": telemetry.before,
            "after": after,
            "warnings": [*self.notes, *telemetry.warnings],
            "steps": steps,
        }

    def _train(self, trainer: StageTrainer, guard: Snapshots, snapshot: Path | None) -> int:
        """Takes the steps that are left; returns the number of the last one."""
        done = read_mark(snapshot) if snapshot else {"step": 0, "steps": 1}
        if snapshot and done["step"] >= done["steps"]:
            trainer._load_from_checkpoint(str(snapshot))  # Trainer itself would take one step too many
            return int(done["step"])
        decoder = anatomy(self.model).decoder
        attention = decoder.config._attn_implementation  # type: ignore[union-attr]
        if self.device.type == "cpu" and self._typical_length() <= EAGER_TOKENS:
            decoder.set_attn_implementation("eager")  # type: ignore[operator]
        try:
            with finish_step_on_interrupt(guard):
                trainer.train(resume_from_checkpoint=str(snapshot) if snapshot else None)
        finally:
            decoder.set_attn_implementation(attention)  # type: ignore[operator]
            # Trainer lays its own autocast over the model's forward; without it the class's own is seen again.
            for name in ("forward", "_original_forward"):
                vars(self.model).pop(name, None)
            if self.config.gradient_checkpointing:
                self.model.gradient_checkpointing_disable()
        step = int(trainer.state.global_step)
        if guard.interrupted:
            raise KeyboardInterrupt(f"stopped after step {step}; the same command with --resume goes on from there")
        return step

    def _trainer(self, work: Path) -> StageTrainer:
        config = self.config
        context = context_of(self.model) if self.stage.accepts == "upcycled" else None
        if len(self.train_set) < config.batch_size:
            raise DataError(
                f"{self.train_set.conversations[0].where.rsplit(':', 1)[0]}: {len(self.train_set)} conversations are "
                f"fewer than batch_size={config.batch_size}; lower it"
            )
        trainer = StageTrainer(
            model=self.model,
            args=arguments(config, work, self.device),
            train_dataset=self.train_set,
            data_collator=self.collate,
            learning_rates=lambda name: (
                config.connector_learning_rate if component_of(name) == "connector" else config.learning_rate
            ),
            sampler=EpochSampler(
                len(self.train_set),
                seed=config.seed,
                batch_size=config.batch_size,
                lengths=self.train_set.approximate_lengths() if config.group_by_length else None,
            ),
            balance_loss=context.balance_loss if context else None,
            balance_coefficient=context.balance_coefficient if context else 0.0,
            mixtures=len(blocks(self.model)),
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        return trainer

    def _typical_length(self) -> int:
        """Tokens of the longest of a few conversations."""
        count = len(self.train_set)
        return max(len(self.train_set[i]["input_ids"]) for i in range(0, count, -(-count // 32)))

    def probe(self) -> dict[str, float]:
        """Text perplexity, and the loss of held-out answers: what forgetting would show in. Empty if not asked for."""
        if not self.config.probe_conversations:
            return {}
        result = {}
        with autocast(self.device, self.config.precision):
            try:
                result["text_perplexity"] = text_perplexity(self.model, self.tokenizer, english_text())
            except DataError as error:  # the text comes from pip, and training must not need a network
                if not self.notes:
                    self.notes.append(f"text perplexity is not measured: {error}")
            if self.probe_set is not None:
                size = self.config.batch_size
                result["held_out_loss"] = held_out_loss(self.model, self.probe_set, self.collate, size)
        for name, value in result.items():
            if not math.isfinite(value):
                raise TrainingError(f"the model's {name.replace('_', ' ')} is {value}; lower learning_rate")
        return result

    def store(self, folder: Path) -> None:
        """Write model and processor, every parameter in the dtype it came with; routers and experts in fp32."""
        settle(self.model, self.dtypes)
        try:
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
        except SafetensorError as error:  # a full disk, in safetensors' words
            raise CheckpointError(f"{folder}: cannot be written: {error}; free space there") from error


def _not_finite(model: PreTrainedModel) -> str:
    """Name of the first parameter that holds NaN or Inf, or ""."""
    return next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), "")


def _conversations(
    train_file: Path, held_out_file: Path | None, config: TrainConfig
) -> tuple[list[Conversation], list[Conversation]]:
    """Training conversations, and held-out ones for the probe (every n-th, so that all skills are among them)."""
    conversations = read_conversations(train_file)
    if not conversations:
        raise DataError(f"{train_file}: holds no conversation")
    if held_out_file is None:
        return conversations, []
    held_out = read_conversations(held_out_file)
    return conversations, held_out[:: -(-len(held_out) // config.probe_conversations) or 1]


def _ternary_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Integer weights [E, N, K] of every routed expert matrix, as the next forward pass uses them."""
    return {
        f"{index}.{name}": block.experts.quantized(name).q
        for index, block in enumerate(blocks(model))
        if isinstance(block.experts, FloatExperts) and block.mote.routed.quantizer == "ternary"
        for name in PROJECTIONS
    }
