"""What training changed, as a start file: the best low-rank factors that a number of bytes can hold.

For each matrix of the language model, with D = W_trained - W_base = U S V^T in fp32, a component (u_i, s_i, v_i)
removes s_i^2 of the squared error and costs the bytes of u_i and v_i. Components of all matrices compete by s_i^2 per
byte until the file is full; sqrt(s_i) goes into each factor.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mote.assemble.config import ExtractConfig, Precision
from mote.assemble.start_file import IN, OUT, SCALE, base_hashes, encode, encoded_bytes, part_of, write_start
from mote.checkpoint.environment import record_environment
from mote.checkpoint.shards import Checkpoint
from mote.errors import CheckpointError
from mote.recipe import to_plain

HEADER_BYTES = 176
"""Room for one entry of the header: name, dtype, shape and offsets."""
RECORD_BYTES = 4096
"""Room for the record."""

Factors = tuple[Tensor, Tensor, Tensor]
"""u [R, N], s [R], v [R, K] of one matrix, largest s first."""


def extract_start(
    base: Path,
    trained: Path,
    out: Path,
    config: ExtractConfig | None = None,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes to the file `out` what the dense checkpoint `trained` has learned since `base`, and returns the record.

    progress is told, after each tensor compared, (its bytes, those of all). Raises CheckpointError if the two are not
    one model before and after training with the same vision tower, if connector and norms alone exceed `max_bytes`, or
    if `out` exists.
    """
    config = config or ExtractConfig()
    before, after = Checkpoint.open(base), Checkpoint.open(trained)
    _check(before, after, out, force)
    tensors: dict[str, Tensor] = {}
    changes: dict[str, Factors] = {}
    total, read = 0.0, sum(info.nbytes for info in after.tensors.values())
    for name, info in after.tensors.items():
        old, new = before.read(name), after.read(name, finite=True)
        if part_of(name) == "connector" and new.ndim == 2:
            _put(tensors, name, new, config.connector)
        elif part_of(name) == "connector" or (not torch.equal(old, new) and new.ndim != 2):
            tensors[name] = new.clone()
        elif not torch.equal(old, new):
            change = new.float() - old.float()
            total += float(change.square().sum())
            changes[name] = _components(change, config.max_rank)
        if progress is not None:
            progress(info.nbytes, read)
    ranks = _ranks(changes, config, _room(tensors, changes, config, out))
    kept = _store(tensors, changes, ranks, config.factors)
    record = {
        "base": base_hashes(before),
        "settings": to_plain(config),
        "kept": round(kept / total, 6) if total else 1.0,
        "rank": round(sum(ranks.values()) / max(1, len(ranks)), 2),
        "made_from": _origin(before, after),
    }
    write_start(out, record, tensors)
    return {**record, "bytes": out.stat().st_size}


def _check(before: Checkpoint, after: Checkpoint, out: Path, force: bool) -> None:
    for checkpoint in (before, after):
        if checkpoint.state != "dense":
            raise CheckpointError(f"{checkpoint.root}: is {checkpoint.state}; extract from two dense checkpoints")
    shapes = [{name: (info.dtype, info.shape) for name, info in c.tensors.items()} for c in (before, after)]
    if shapes[0] != shapes[1]:
        odd = sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))
        raise CheckpointError(f"{after.root}: {odd[0]!r} is not as in {before.root}; give one model before and after")
    seen = [name for name in before.tensors if part_of(name) == "vision_tower"]
    if any(not torch.equal(before.read(name), after.read(name)) for name in seen):
        raise CheckpointError(f"{after.root}: another vision tower than {before.root}; give one model before and after")
    if out.is_dir() or (out.exists() and not force):
        raise CheckpointError(f"{out}: exists already; choose another --out, or --force to replace a file")


def _components(change: Tensor, most: int) -> Factors:
    u_NR, s_R, v_RK = torch.linalg.svd(change, full_matrices=False)
    return u_NR.T[:most].contiguous(), s_R[:most], v_RK[:most].contiguous()


def _room(tensors: Mapping[str, Tensor], changes: Mapping[str, Factors], config: ExtractConfig, out: Path) -> int:
    """Bytes for the codes and scales of the factors. Raises CheckpointError if there are none."""
    entries = len(tensors) + len(changes) * (2 if config.factors in ("bfloat16", "float32") else 4)
    used = sum(tensor.nbytes for tensor in tensors.values()) + entries * HEADER_BYTES + RECORD_BYTES
    if used > config.max_bytes:
        raise CheckpointError(
            f"{out}: connector, norms and names alone take {used:,} bytes; raise max_bytes={config.max_bytes:,}, or "
            "store the connector in fewer bits"
        )
    return config.max_bytes - used


def _ranks(changes: Mapping[str, Factors], config: ExtractConfig, room: int) -> dict[str, int]:
    """How many components of each matrix go into `room` bytes, the ones that gain most per byte first."""
    offers = []
    for name, (u_RN, s_R, v_RK) in changes.items():
        cost = encoded_bytes(1, u_RN.shape[1], config.factors) + encoded_bytes(1, v_RK.shape[1], config.factors)
        offers += [(float(s) ** 2 / cost, name, cost) for s in s_R if s > 0]
    ranks = dict.fromkeys(changes, 0)
    for _, name, cost in sorted(offers, key=lambda offer: (-offer[0], offer[1])):
        if cost <= room:
            ranks[name] += 1
            room -= cost
    return ranks


def _store(
    tensors: dict[str, Tensor], changes: Mapping[str, Factors], ranks: Mapping[str, int], precision: Precision
) -> float:
    """Puts the chosen components into `tensors`; returns the sum of their squared singular values."""
    kept = 0.0
    for name, (u_RN, s_R, v_RK) in changes.items():
        rank = ranks[name]
        if rank:
            root_R1 = s_R[:rank, None].sqrt()
            _put(tensors, name + OUT, u_RN[:rank] * root_R1, precision)
            _put(tensors, name + IN, v_RK[:rank] * root_R1, precision)
            kept += float(s_R[:rank].square().sum())
    return kept


def _put(tensors: dict[str, Tensor], name: str, matrix: Tensor, precision: Precision) -> None:
    stored, scale = encode(matrix, precision)
    tensors[name] = stored
    if scale is not None:
        tensors[name + SCALE] = scale


def _origin(before: Checkpoint, after: Checkpoint) -> dict[str, Any]:
    """What the file was made of: ids of both checkpoints, the stages between, versions and commit."""
    lineage, environment = after.lineage, record_environment()
    verbs = [] if lineage is None else [*(verb for verb, _ in lineage.ancestors), lineage.verb]
    versions, git = environment.get("versions"), environment.get("git")
    return {
        "assembled": before.identity(),
        "trained": after.identity(),
        "stages": verbs,
        "versions": versions,
        "git": git,
    }
