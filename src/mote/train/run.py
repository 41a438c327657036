"""One training run, checkpoint in, checkpoint out: `train`."""

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from mote.checkpoint.accounting import component_of
from mote.checkpoint.atomic import new_directory
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.writer import seal_checkpoint
from mote.data.conversation import Conversation, read_conversations
from mote.data.text import english_text
from mote.errors import CheckpointError, DataError, TrainingError
from mote.model.block import blocks, context_of
from mote.model.experts import FloatExperts
from mote.model.families import PROJECTIONS, anatomy
from mote.model.features import PictureFeatures
from mote.model.precision import autocast, computes_in_bf16
from mote.model.vision import connect
from mote.train.batches import Collator, ConversationDataset, EpochSampler
from mote.train.config import STAGES, Stage, StageName, TrainConfig
from mote.train.telemetry import Telemetry, TernaryWatch, progress_bar, text_perplexity
from mote.train.trainer import Snapshots, StageTrainer, answer_logits, newest_snapshot
from mote.train.warm_start import warm_start


def train(
    checkpoint: Path,
    out: Path,
    config: TrainConfig,
    *,
    stage: StageName,
    data: Path,
    work: Path | None = None,
    features: Path | None = None,
    resume: bool = True,
    force: bool = False,
) -> Path:
    """Run one stage on the conversations at `data` and write the trained checkpoint to `out`.

    data: a LLaVA JSON/JSONL file, or a folder with `train.jsonl` and, for the held-out probe, `val.jsonl`.
    work: folder for snapshots; default `<out>.work`. A whole snapshot there is resumed from unless `resume` is False;
        the folder is removed when the run is complete.
    features: folder of the vision-feature cache, which several runs may share; default inside `work`.
    Besides the weights, `out` gets `losses.jsonl`, `training.json` (probes, warnings) and `tensorboard/`.

    Raises CheckpointError if the checkpoint is in another state than the stage accepts, DataError for bad data,
    TrainingError if the loss is not finite, KeyboardInterrupt after Ctrl-C once a snapshot is on disk.
    """
    recipe = STAGES[stage]
    source = Checkpoint.open(checkpoint)
    if source.state != recipe.accepts:
        raise CheckpointError(
            f"{checkpoint}: state {source.state!r}, but {recipe.title} starts from {recipe.accepts!r}"
            + ("; run `mote upcycle` first" if stage == "experts" and source.state == "dense" else "")
        )
    config = config.resolved(recipe)
    work = work or out.with_name(out.name + ".work")
    provenance = Provenance.start(f"train {stage}", config=config, seed=config.seed, parent=source)
    with new_directory(out, force=force, source=checkpoint) as partial:
        _quiet_transformers()
        torch.manual_seed(config.seed)
        session = Session.open(checkpoint, config, recipe, data, features or work / "features")
        logs = work / "logs"
        snapshot = newest_snapshot(work) if resume else None
        if config.warm_start_epochs and snapshot is None:
            session.warm_start(config)
        report = session.run(config, recipe, work, logs, snapshot)
        session.store(source, partial)
        for log in logs.iterdir():
            shutil.move(log, partial / log.name)
        (partial / "training.json").write_text(json.dumps(report, indent=1))
        seal_checkpoint(partial, provenance)
    shutil.rmtree(work, ignore_errors=True)
    return out


@dataclass(kw_only=True)
class Session:
    """A model with its data, ready to train: everything that one stage needs while it runs."""

    model: PreTrainedModel
    processor: Any
    train_set: ConversationDataset
    probe_set: ConversationDataset | None
    device: torch.device

    @classmethod
    def open(cls, checkpoint: Path, config: TrainConfig, stage: Stage, data: Path, features: Path) -> "Session":
        """Load model and data, set what trains (in fp32), and fill the feature cache."""
        device = _device(config.device)
        model = load_model(checkpoint).to(device)
        select(model, stage.trains if config.train_embeddings else stage.trains - {"embeddings"})
        model.train()
        processor = AutoProcessor.from_pretrained(checkpoint)
        conversations, held_out = _conversations(data, config)
        pictures = [c.image for c in (*conversations, *held_out) if c.image is not None]
        source: PictureFeatures | None = None
        image_tokens = 0
        if pictures:
            source = PictureFeatures(model, processor, features)
            with progress_bar("Vision features") as bar:
                task = bar.add_task("", total=None, note="")
                source.fill(pictures, lambda done, total: bar.update(task, completed=done, total=total))
            with torch.no_grad():
                image_tokens = connect(model, source(pictures[:1]).to(device, torch.float32)).shape[1]

        def dataset(items: Sequence[Conversation]) -> ConversationDataset:
            return ConversationDataset(
                items,
                processor,
                source,
                image_tokens=image_tokens,
                turns=config.turns,
                max_length=config.max_length,
            )

        return cls(
            model=model,
            processor=processor,
            train_set=dataset(conversations),
            probe_set=dataset(held_out) if held_out else None,
            device=device,
        )

    def warm_start(self, config: TrainConfig) -> None:
        """Contrastive warm start of the connector (see the module of that name)."""
        parts = anatomy(self.model)
        if parts.connector is None:
            return

        def connector(features: Tensor) -> Tensor:
            with autocast(self.device, config.precision):
                return connect(self.model, features)

        with progress_bar("Warm start") as bar:
            task = bar.add_task("", total=100, note="")
            warm_start(
                connector,
                list(parts.connector.parameters()),
                self.model.get_input_embeddings().weight.detach(),
                lambda word: _tokenizer(self.processor).encode(word, add_special_tokens=False),
                self.train_set.conversations,
                lambda conversation: self.train_set.features(conversation),
                epochs=config.warm_start_epochs,
                learning_rate=config.warm_start_learning_rate,
                seed=config.seed,
                progress=lambda done, loss: bar.update(task, completed=int(100 * done) + 1, note=f"loss {loss:.3f}"),
            )
            bar.update(task, completed=100)

    def run(self, config: TrainConfig, stage: Stage, work: Path, logs: Path, snapshot: Path | None) -> dict[str, Any]:
        """Train; returns what `training.json` holds."""
        before = self.probe(config)
        trainer, telemetry, guard = self._trainer(config, stage, work, logs)
        with _finish_step_on_interrupt(guard):
            trainer.train(resume_from_checkpoint=str(snapshot) if snapshot else None)
        if guard.interrupted:
            raise KeyboardInterrupt(
                f"stopped after step {trainer.state.global_step}; the same command goes on from there"
            )
        after = self.probe(config)
        telemetry.judge(before, after)
        return {
            "before": before,
            "after": after,
            "warnings": telemetry.warnings,
            "steps": trainer.state.global_step,
        }

    def _trainer(
        self, config: TrainConfig, stage: Stage, work: Path, logs: Path
    ) -> tuple[StageTrainer, Telemetry, Snapshots]:
        context = context_of(self.model) if stage.accepts == "upcycled" else None
        connector_rate, rate = config.connector_learning_rate, config.learning_rate
        trainer = StageTrainer(
            model=self.model,
            args=_arguments(config, work, self.device),
            train_dataset=self.train_set,
            data_collator=Collator(_tokenizer(self.processor).pad_token_id),
            learning_rates=lambda name: connector_rate if component_of(name) == "connector" else rate,
            sampler=EpochSampler(
                len(self.train_set),
                seed=config.seed,
                batch_size=config.batch_size,
                lengths=self.train_set.approximate_lengths() if config.group_by_length else None,
            ),
            balance_loss=context.balance_loss if context else None,
            balance_coefficient=context.balance_coefficient if context else 0.0,
        )
        telemetry = Telemetry(
            logs / "losses.jsonl",
            title=stage.title,
            losses=lambda: trainer.last_losses,
            routing=context.statistics if context else None,
            watch=TernaryWatch(lambda: _ternary_weights(self.model)) if context else None,
            board=_board(logs / "tensorboard"),
        )
        guard = Snapshots(config.save_minutes)
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(telemetry)
        trainer.add_callback(guard)
        return trainer, telemetry, guard

    @torch.no_grad()
    def probe(self, config: TrainConfig) -> dict[str, float]:
        """Text perplexity, and the loss of held-out answers: what forgetting would show in. Empty if not asked for."""
        if not config.probe_conversations:
            return {}
        self.model.eval()
        with autocast(self.device, config.precision):
            result = {"text_perplexity": text_perplexity(self.model, _tokenizer(self.processor), english_text())}
            if self.probe_set is not None:
                collate = Collator(_tokenizer(self.processor).pad_token_id)
                total, count = 0.0, 0
                for start in range(0, len(self.probe_set), config.batch_size):
                    stop = min(start + config.batch_size, len(self.probe_set))
                    batch = collate([self.probe_set[i] for i in range(start, stop)])
                    logits, targets = answer_logits(self.model, {k: v.to(self.device) for k, v in batch.items()})
                    total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
                    count += targets.numel()
                result["held_out_loss"] = total / max(1, count)
        self.model.train()
        return result

    def store(self, source: Checkpoint, partial: Path) -> None:
        """Write the model: routers and experts in fp32, whose rounding decides ternary values, all else as it came."""
        dtypes = {torch.float32 if info.dtype == "F32" else torch.bfloat16 for info in source.tensors.values()}
        narrow = torch.bfloat16 if torch.bfloat16 in dtypes else torch.float32
        for name, parameter in self.model.named_parameters():
            if component_of(name) not in STAGES["experts"].trains:
                parameter.data = parameter.data.to(narrow)
        self.model.config.dtype = narrow
        self.model.save_pretrained(partial)
        self.processor.save_pretrained(partial)


def load_model(checkpoint: Path) -> PreTrainedModel:
    """The model at `checkpoint`, whatever its task, in the dtype of its tensors."""
    config = json.loads((checkpoint / "config.json").read_text())
    auto = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(checkpoint)
    return model


def select(model: PreTrainedModel, components: frozenset[str]) -> None:
    """Let exactly the parameters of `components` train, as fp32 masters: at a rate of 2e-5 a bf16 weight does not move.

    The shared experts join them where the checkpoint's `train_shared` says so.
    """
    model.requires_grad_(False)
    if blocks(model) and blocks(model)[0].mote.train_shared:
        components = components | {"dense_ffn"}
    for name, parameter in model.named_parameters():
        if component_of(name) in components:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise TrainingError(f"nothing to train: the model has none of {', '.join(sorted(components))}")


def _conversations(data: Path, config: TrainConfig) -> tuple[list[Conversation], list[Conversation]]:
    """Training conversations, and held-out ones for the probe (every n-th, so that all skills are among them)."""
    train_file = data / "train.jsonl" if data.is_dir() else data
    conversations = read_conversations(train_file)
    if not conversations:
        raise DataError(f"{train_file}: holds no conversation")
    val_file = data / "val.jsonl"
    if not (data.is_dir() and val_file.is_file() and config.probe_conversations):
        return conversations, []
    held_out = read_conversations(val_file)
    return conversations, held_out[:: max(1, len(held_out) // config.probe_conversations)]


def _ternary_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Integer weights [E, N, K] of every routed expert matrix, as the last forward pass used them."""
    return {
        f"{index}.{name}": block.experts.quantized(name).q
        for index, block in enumerate(blocks(model))
        if isinstance(block.experts, FloatExperts) and block.mote.routed.quantizer == "ternary"
        for name in PROJECTIONS
    }


def _arguments(config: TrainConfig, work: Path, device: torch.device) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,  # below 1 it is a share of all steps
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_gradient_norm,
        bf16=computes_in_bf16(device, config.precision),
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        logging_strategy="no",  # Telemetry writes the rows
        logging_steps=config.log_every,
        save_strategy="no",  # Snapshots decides
        report_to="none",
        use_cpu=device.type == "cpu",
        seed=config.seed,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        disable_tqdm=True,
    )


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def _board(folder: Path) -> Any:
    """A TensorBoard writer."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


@contextlib.contextmanager
def _finish_step_on_interrupt(guard: Snapshots) -> Iterator[None]:
    """First Ctrl-C: finish the step, save, stop. A second one stops at once."""

    def ask(signum: int, frame: object) -> None:
        if guard.interrupted:
            raise KeyboardInterrupt
        guard.interrupted = True

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # only the main thread may set handlers; elsewhere Ctrl-C is somebody else's to handle
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _quiet_transformers() -> None:
    """Its bars and notices would break our progress display."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
