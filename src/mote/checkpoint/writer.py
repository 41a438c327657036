"""Writing a checkpoint as a stream, one tensor in memory at a time; it appears whole or not at all.

Names, dtypes and shapes are planned first, so that headers, shard names and the space needed are known
before the first tensor is made; each tensor is then asked for by name, written, hashed and dropped.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mote.checkpoint.atomic import check_space, new_directory
from mote.checkpoint.header import PlannedTensor, build_header, data_order, dtype_name
from mote.checkpoint.lineage import MOTE_FILE, Provenance, pretty_json, seal
from mote.checkpoint.shards import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, Checkpoint
from mote.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch

DEFAULT_SHARD_BYTES = 4 << 30
CARRIED = (
    *(
        "tokenizer*.json",
        "tokenizer.model",
        "spiece.model",
        "*.tiktoken",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
    ),
    *("special_tokens_map.json", "added_tokens.json", "chat_template*", "additional_chat_templates/*.jinja"),
    *("*processor_config.json", "generation_config.json", "LICENSE*", "NOTICE*"),
)
"""Files that every stage carries along: tokenizer, processor, chat template, generation config, licences."""
_PIECE = 1 << 24


def write_checkpoint(
    out: str | Path,
    *,
    config: dict[str, Any],
    tensors: Sequence[PlannedTensor],
    produce: "Callable[[str], torch.Tensor]",
    lineage: Provenance,
    carry_from: Path | None = None,
    carried: Sequence[str] = CARRIED,
    files: Mapping[str, bytes | str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Write the directory `out` and return it opened.

    config: `config.json`, with the quantization_config in it. tensors: all tensors; `produce(name)` is
    called once for each, shard by shard, and must give that dtype and shape, on any device. lineage: the
    stage's running `Provenance`. carry_from: directory whose files named in `carried` are copied, never weights.
    files: further small files by name. max_shard_bytes: data bytes per file; a larger tensor gets a file to
    itself. force: replace an existing checkpoint, in one step at the end. progress: is told, after each tensor,
    (its bytes, those of all).

    Raises CheckpointError (disk full, `out` in use, a tensor not as planned); then `out` is as it was before.
    """
    out = Path(out)
    shards = _plan(tensors, max_shard_bytes)
    with new_directory(out, force=force, source=carry_from) as partial:
        check_space(out, sum(tensor.nbytes for tensor in tensors))
        if carry_from is not None:
            _carry(Path(carry_from), partial, carried)
        for name, data in {**(files or {}), CONFIG_FILE: pretty_json(config)}.items():
            _place(partial, name).write_bytes(data.encode() if isinstance(data, str) else data)
        if len(shards) > 1:
            (partial / INDEX_FILE).write_bytes(pretty_json(_index(shards)))
        total = sum(plan.nbytes for plan in tensors)
        told = None if progress is None else lambda count: progress(count, total)
        hashes = {shard: _write_shard(partial / shard, planned, produce, told) for shard, planned in shards.items()}
        seal(partial, lineage, hashed=hashes)
        # What does not open must not replace what does.
        checkpoint = Checkpoint.open(partial)
    return replace(checkpoint, root=out)


def planned_files(tensors: Sequence[PlannedTensor], max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> dict[str, int]:
    """Weight files, by name, that `write_checkpoint` makes of these tensors, and their bytes, headers included."""
    shards = _plan(tensors, max_shard_bytes)
    return {
        shard: len(build_header(planned)) + sum(tensor.nbytes for tensor in planned)
        for shard, planned in shards.items()
    }


def seal_checkpoint(directory: Path, lineage: Provenance) -> Checkpoint:
    """Seal a checkpoint that another writer filled (`save_pretrained`), and open it.

    For use inside of `new_directory`. Raises CheckpointError if it does not open.
    """
    seal(directory, lineage)
    return Checkpoint.open(directory)


def _place(folder: Path, name: str) -> Path:
    if Path(name).name != name or name in (MOTE_FILE, INDEX_FILE) or name.endswith(".safetensors"):
        raise CheckpointError(f"{name}: not a name for a side file of a checkpoint")
    return folder / name


def _plan(tensors: Sequence[PlannedTensor], max_shard_bytes: int) -> dict[str, list[PlannedTensor]]:
    names = [tensor.name for tensor in tensors]
    if not names or len(set(names)) != len(names) or "__metadata__" in names:
        raise CheckpointError("tensors to write: none, or two of one name, or one called __metadata__")
    groups: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    if len(groups) == 1:
        return {SINGLE_FILE: data_order(groups[0])}
    total = len(groups)
    return {
        f"model-{number:05d}-of-{total:05d}.safetensors": data_order(group)
        for number, group in enumerate(groups, start=1)
    }


def _index(shards: dict[str, list[PlannedTensor]]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(tensor.nbytes for planned in shards.values() for tensor in planned)},
        "weight_map": {tensor.name: shard for shard, planned in shards.items() for tensor in planned},
    }


def _carry(source: Path, target: Path, carried: Sequence[str]) -> None:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and any(fnmatch(name, pattern) for pattern in carried if ("/" in pattern) == ("/" in name)):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target / name)


def _write_shard(
    path: Path,
    planned: Sequence[PlannedTensor],
    produce: "Callable[[str], torch.Tensor]",
    progress: Callable[[int], None] | None,
) -> str:
    """Write one file and return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        header = build_header(planned)
        digest.update(header)
        file.write(header)
        for plan in planned:
            data = _data(plan, produce(plan.name))
            for start in range(0, len(data), _PIECE):
                digest.update(data[start : start + _PIECE])
                file.write(data[start : start + _PIECE])
            # Let go before the next one is made, or memory holds two.
            del data
            if progress is not None:
                progress(plan.nbytes)
    return digest.hexdigest()


def _data(plan: PlannedTensor, tensor: "torch.Tensor") -> memoryview:
    """The bytes of a produced tensor, in row-major order."""
    import torch

    if dtype_name(tensor.dtype) != plan.dtype or tuple(tensor.shape) != plan.shape:
        raise CheckpointError(
            f"tensor {plan.name!r} was planned as {plan.dtype}{list(plan.shape)} and made as "
            f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"
        )
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    data: np.ndarray[Any, np.dtype[np.uint8]] = flat.view(torch.uint8).numpy()
    return data.data
