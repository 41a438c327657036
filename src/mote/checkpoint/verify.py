"""`mote verify`: everything that opening leaves out because it reads all bytes.

Opening checks claims (headers, sizes, bounds, shapes, scales). This checks contents: SHA-256 of every file
against mote.json, every digit of every packed tensor, and every float for NaN and Inf.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mote.checkpoint.header import TensorInfo
from mote.checkpoint.layout import (
    MATRICES,
    Linear,
    codec_of,
    ffn_sizes,
    matrix_shape,
    mixture_prefixes,
    plain_linears,
)
from mote.checkpoint.lineage import MOTE_FILE, file_hash
from mote.checkpoint.shards import Checkpoint, count_not_finite
from mote.errors import CheckpointError, FormatError, MoteError


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Outcome: `problems`, one line each, are empty for a sound checkpoint; `notes` say what could not be
    checked.

    tensors, bytes: how many tensors, and how many bytes of them, were read.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tensors: int = 0
    bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(directory: str | Path, *, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Check all of a checkpoint and list every problem found; raises nothing about its contents.

    progress: is told, after each tensor, (its bytes, those of all). Needs memory for one matrix.
    """
    root = Path(directory)
    try:
        checkpoint = Checkpoint.open(root)
    except MoteError as error:
        return Verification(problems=[str(error)])
    problems, notes = check_hashes(checkpoint)
    packed = _packed_matrices(checkpoint)
    total = sum(info.nbytes for info in checkpoint.tensors.values())
    for info in checkpoint.tensors.values():
        try:
            problems += _check_tensor(checkpoint, info, packed)
        except MoteError as error:
            problems.append(str(error))
        if progress is not None:
            progress(info.nbytes, total)
    return Verification(problems=problems, notes=notes, tensors=len(checkpoint.tensors), bytes=total)


def check_hashes(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """(problems, notes) of the SHA-256 of every file that mote.json lists; reads all bytes."""
    root = checkpoint.root
    try:
        lineage = checkpoint.lineage
    except CheckpointError as error:
        return [str(error)], []
    if lineage is None:
        return [], [f"{root}: has no {MOTE_FILE}, so hashes and origin cannot be checked"]
    unknown = [shard for shard in checkpoint.shards if shard not in lineage.shards]
    problems = [f"{root / shard}: is not listed in {MOTE_FILE}" for shard in unknown]
    for name, expected in {**lineage.shards, **lineage.files}.items():
        path = root / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            problems.append(f"{root / MOTE_FILE}: names {name!r}, which is outside of the checkpoint")
        elif not path.is_file():
            problems.append(f"{path}: is missing; {MOTE_FILE} lists it")
        elif file_hash(path) != expected:
            problems.append(f"{path}: was altered, its SHA-256 is not the one in {MOTE_FILE}; fetch it again")
    return problems, []


def _packed_matrices(checkpoint: Checkpoint) -> dict[str, Linear]:
    """Name of every packed tensor -> format and sizes of its matrices."""
    mote = checkpoint.mote
    if mote is None:
        return {}
    found = {f"{name}.packed": linear for name, linear in plain_linears(mote, checkpoint.tensors).items()}
    for prefix in mixture_prefixes(checkpoint.tensors).values():
        hidden, ffn = ffn_sizes(mote, checkpoint.config, checkpoint.tensors, prefix)
        for matrix in MATRICES:
            shape = matrix_shape(matrix, hidden, ffn)
            for name, fmt in ((f"experts.{matrix}_packed", mote.routed), (f"{matrix}.packed", mote.shared)):
                if codec := codec_of(mote, fmt):
                    found[f"{prefix}{name}"] = Linear(*shape, fmt, codec)
    return found


def _check_tensor(checkpoint: Checkpoint, info: TensorInfo, packed: dict[str, Linear]) -> list[str]:
    where = f"{checkpoint.root / info.shard}: tensor {info.name!r}"
    tensor = checkpoint.read(info.name)
    if info.name in packed:
        from mote.ternary.codecs import CODECS

        linear = packed[info.name]
        # One expert at a time: the digits of a whole stack would take many times its bytes.
        for expert, matrix in enumerate(tensor.view(-1, *tensor.shape[-3:])):
            try:
                CODECS[linear.codec].check(matrix, linear.rows, linear.cols, linear.format.group)
            except FormatError as error:
                return [f"{where}{f', expert {expert}' if tensor.ndim > 3 else ''}: {error}"]
        return []
    bad = count_not_finite(tensor)
    return [f"{where} holds {bad} NaN or Inf of {info.numel}; train or fetch it again"] if bad else []
