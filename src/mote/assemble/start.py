"""Stages I and II from a file: an assembled checkpoint becomes the dense model that training made of it, or nearly.

The file holds the trained connector and norms whole, and low-rank factors of what each matrix of the language model
learned: W = W_base + out^T in, computed in fp32 and stored in the checkpoint's dtype.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mote.assemble.config import StartConfig
from mote.assemble.start_file import IN, OUT, StartFile, base_hashes, read_start
from mote.checkpoint.header import TORCH_NAMES, PlannedTensor
from mote.checkpoint.lineage import Provenance, file_hash, pretty_json
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.writer import DEFAULT_SHARD_BYTES, write_checkpoint
from mote.errors import CheckpointError

RECORD_FILE = "start.json"
"""In the checkpoint that comes of it: the start file's record, its source and its hash."""


def apply_start(
    checkpoint: Path,
    out: Path,
    config: StartConfig,
    *,
    force: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Reads the assembled `checkpoint`, writes the dense `out` atomically, tensor by tensor, and returns it opened.

    progress: as `write_checkpoint` has it. Raises CheckpointError if the checkpoint is not dense or not the model that
    the start file was made for, if the file is damaged, or if `out` cannot be written.
    """
    source = Checkpoint.open(checkpoint)
    if source.state != "dense":
        raise CheckpointError(f"{checkpoint}: is {source.state}; a start file goes onto an assembled, dense checkpoint")
    path = config.file()
    digest = file_hash(path)
    if config.sha256 not in ("", digest):
        raise CheckpointError(f"{path}: SHA-256 is {digest[:16]}..., not {config.sha256[:16]}...; fetch it again")
    start = read_start(path)
    _check_base(source, start, path)
    inputs = {path.name: digest, **{f"{name} model": identity for name, identity in _origin(start).items()}}
    provenance = Provenance.start("start", config=config, parent=source, inputs=inputs)
    return write_checkpoint(
        out,
        config=source.config,
        tensors=[PlannedTensor(name, info.dtype, info.shape) for name, info in source.tensors.items()],
        produce=lambda name: started(source, start, name),
        lineage=provenance,
        carry_from=checkpoint,
        files={RECORD_FILE: pretty_json({"source": config.source, "sha256": digest, **start.record})},
        max_shard_bytes=max_shard_bytes,
        force=force,
        progress=progress,
    )


def started(source: Checkpoint, start: StartFile, name: str) -> Tensor:
    """One tensor of the dense model, in the dtype of `source`."""
    kept = source.read(name, finite=True)
    whole, factors = start.value(name), (start.value(name + OUT), start.value(name + IN))
    if whole is not None:
        return whole.to(kept.dtype)
    if factors[0] is None or factors[1] is None:
        return kept
    out_RN, in_RK = (factor.float() for factor in factors if factor is not None)
    return torch.addmm(kept.float(), out_RN.T, in_RK).to(kept.dtype)


def _origin(start: StartFile) -> dict[str, str]:
    """Ids of the assembled and the trained checkpoint that the file was made of."""
    made_from = start.record.get("made_from", {})
    return {name: str(made_from[name]) for name in ("assembled", "trained") if name in made_from}


def _check_base(source: Checkpoint, start: StartFile, path: Path) -> None:
    """Raises CheckpointError unless the file was made for the weights of `source` and all its tensors fit them."""
    found = base_hashes(source)
    other = [part.replace("_", " ") for part, digest in found.items() if start.record["base"].get(part) != digest]
    if other:
        raise CheckpointError(
            f"{path}: was made for another {' and '.join(other)} than {source.root} holds; "
            "leave `start` out of the recipe to train stages I and II"
        )
    for name in sorted(start.changed()):
        shape, dtype = source.info(name).shape, source.info(name).dtype
        shapes = [tuple(value.shape) for value in (start.value(name), start.value(name + OUT)) if value is not None]
        if TORCH_NAMES[dtype][0] not in ("float32", "bfloat16", "float16") or not _fits(start, name, shape):
            raise CheckpointError(f"{path}: {name!r} of shape {shapes} does not fit {dtype}{list(shape)}")


def _fits(start: StartFile, name: str, shape: tuple[int, ...]) -> bool:
    whole, out_RN, in_RK = start.value(name), start.value(name + OUT), start.value(name + IN)
    if whole is not None:
        return tuple(whole.shape) == shape and out_RN is None and in_RK is None
    if out_RN is None or in_RK is None or len(out_RN) != len(in_RK):
        return False
    return (*out_RN.shape[1:], *in_RK.shape[1:]) == shape
