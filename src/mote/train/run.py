"""One training run, checkpoint in, checkpoint out: `train`."""

import contextlib
import dataclasses
import hashlib
import shutil
from pathlib import Path

import torch

from mote.checkpoint.atomic import new_directory, write_file
from mote.checkpoint.lineage import Provenance, canonical_json, file_hash, pretty_json
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.writer import seal_checkpoint
from mote.errors import CheckpointError, DataError
from mote.train.config import STAGES, StageName, TrainConfig
from mote.train.session import Session
from mote.train.snapshots import newest_snapshot, snapshots

IRRELEVANT = ("save_minutes",)
"""Settings that do not change what a run computes, so that a resumed run may have others."""


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
    work: folder for snapshots and logs; default `<out>.work`. A whole snapshot there is resumed from; without `resume`
        it is an error, or with `force` deleted. What the run put there is removed when it is complete.
    features: folder of the vision-feature cache, which several runs may share; default inside `work`.
    force: replace an existing `out`.
    Besides the weights, `out` gets `losses.jsonl`, `training.json` (probes, warnings) and `tensorboard/`.

    Raises CheckpointError if the checkpoint is in another state than the stage accepts, DataError for bad data,
    TrainingError if the loss is not finite or a snapshot belongs to another run, KeyboardInterrupt after Ctrl-C once a
    snapshot is on disk. `out` is then as it was.
    """
    recipe = STAGES[stage]
    source = Checkpoint.open(checkpoint)
    if source.state != recipe.accepts:
        raise CheckpointError(
            f"{checkpoint}: state {source.state!r}, but {recipe.title} starts from {recipe.accepts!r}"
            + ("; run `mote upcycle` first" if stage == "experts" and source.state == "dense" else "")
        )
    config = config.resolved(recipe)
    files = _data_files(data, config)
    inputs = {path.name: file_hash(path) for path in files if path is not None}
    provenance = Provenance.start(f"train {stage}", config=config, seed=config.seed, parent=source, inputs=inputs)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in IRRELEVANT}
    key = hashlib.sha256(canonical_json([stage, settings, source.identity(), inputs])).hexdigest()
    work = work or out.with_name(out.name + ".work")
    logs, own_features = work / "logs", work / "features"
    with new_directory(out, force=force, source=checkpoint) as partial:
        snapshot = newest_snapshot(work, key, resume=resume, force=force)
        if snapshot is None:
            shutil.rmtree(logs, ignore_errors=True)
        torch.manual_seed(config.seed)
        session = Session.open(checkpoint, config, recipe, files, features or own_features)
        if config.warm_start_epochs and snapshot is None:
            session.warm_start()
        report = session.run(work, logs, snapshot, key)
        session.store(partial)
        shutil.copytree(logs, partial, dirs_exist_ok=True)
        write_file(partial / "training.json", pretty_json(report))
        seal_checkpoint(partial, provenance)
    for folder in (logs, own_features, *snapshots(work)):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # the caller's own files may lie there
        work.rmdir()
    return out


def _data_files(data: Path, config: TrainConfig) -> tuple[Path, Path | None]:
    """(training file, held-out file or None) at `data`."""
    if not data.exists():
        raise DataError(f"{data}: no such file or folder; --data takes a JSON or JSONL file, or a drawn folder")
    if not data.is_dir():
        return data, None
    held_out = data / "val.jsonl"
    return data / "train.jsonl", held_out if held_out.is_file() and config.probe_conversations else None
