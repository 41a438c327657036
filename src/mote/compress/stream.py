"""Packing a checkpoint on disk, matrix by matrix, so that memory does not grow with the model.

The stack of each projection becomes `<stack>_packed` and `<stack>_scale`; a gain is folded into the down scale; a
shared expert on a ternary grid is packed too; everything else is copied as it is.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.layout import scale_shape
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.writer import DEFAULT_SHARD_BYTES, write_checkpoint
from mote.compress.config import PackConfig
from mote.errors import CheckpointError, FormatError
from mote.model.families import PROJECTIONS
from mote.model.packed import PackedMatrix, packable
from mote.ternary.codecs import CODECS
from mote.ternary.format import WeightFormat
from mote.ternary.quantize import quantize_weight


def pack_checkpoint(
    checkpoint: Path,
    out: Path,
    config: PackConfig,
    *,
    force: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[int], None] | None = None,
) -> Checkpoint:
    """Reads the up-cycled `checkpoint`, writes the packed `out` atomically and returns it opened.

    progress is told the bytes of each tensor written. Raises CheckpointError (not up-cycled, damaged, NaN or Inf, disk
    full, `out` in use without force) or FormatError (a grid that no codec holds).
    """
    source = Checkpoint.open(checkpoint)
    if source.mote is None:
        raise CheckpointError(f"{checkpoint}: is dense; up-cycle (and train) it before packing")
    contract = config.contract(source.mote, str(checkpoint))
    provenance = Provenance.start("pack", config=config, seed=None, parent=source)
    packer = _Packer(source, contract)
    return write_checkpoint(
        out,
        config={**source.config, "quantization_config": contract.to_dict()},
        tensors=packer.plan(),
        produce=packer.produce,
        lineage=provenance,
        carry_from=checkpoint,
        max_shard_bytes=max_shard_bytes,
        force=force,
        progress=progress,
    )


class _Packer:
    """Plans and makes the tensors of a packed checkpoint from those of an up-cycled one."""

    def __init__(self, source: Checkpoint, contract: MoteConfig) -> None:
        self._source = source
        self._contract = contract
        self._origin: dict[str, tuple[str, WeightFormat]] = {}
        self._scales: dict[str, Tensor] = {}

    def plan(self) -> list[PlannedTensor]:
        """All tensors of the output, in the source's order."""
        planned: list[PlannedTensor] = []
        for name, info in self._source.tensors.items():
            target = self._target(name)
            if name.endswith(".experts.gain"):
                continue
            if target is None:
                planned.append(PlannedTensor(name, info.dtype, info.shape))
                continue
            packed, scale, fmt = target
            *lead, rows, cols = info.shape
            shape = CODECS[self._codec].packed_shape(rows, cols, fmt.group)
            planned.append(PlannedTensor(packed, "U8", (*lead, *shape)))
            planned.append(PlannedTensor(scale, "F32", (*lead, *scale_shape(fmt, rows, cols))))
            self._origin[packed] = self._origin[scale] = (name, fmt)
        return planned

    def produce(self, name: str) -> Tensor:
        """The tensor `name` of the output."""
        if name not in self._origin:
            return self._source.read(name, finite=True)
        if name in self._scales:
            return self._scales.pop(name)
        origin, fmt = self._origin[name]
        packed, scale = self._pack(origin, fmt)
        if name.endswith("scale"):
            return scale
        self._scales[name.removesuffix("packed") + "scale"] = scale
        return packed

    @property
    def _codec(self) -> str:
        return self._contract.codec or ""

    def _target(self, name: str) -> tuple[str, str, WeightFormat] | None:
        """Names of digits and scales that replace the tensor `name`, or None when it is copied."""
        owner, _, last = name.rpartition(".")
        if owner.endswith(".mlp.experts") and last in PROJECTIONS:
            return f"{name}_packed", f"{name}_scale", self._contract.routed
        ffn, _, projection = owner.rpartition(".")
        mixed = f"{ffn}.router.weight" in self._source.tensors
        if mixed and last == "weight" and projection in PROJECTIONS and packable(self._contract.shared):
            return f"{owner}.packed", f"{owner}.scale", self._contract.shared
        return None

    def _pack(self, origin: str, fmt: WeightFormat) -> tuple[Tensor, Tensor]:
        """Quantises and packs a matrix, or a stack one expert at a time."""
        weight = self._source.read(origin, finite=True)
        rows, cols = weight.shape[-2:]
        layout = PackedMatrix(rows=rows, cols=cols, format=fmt, codec=self._contract.codec or "base3")
        digits, scales = [], []
        for matrix in weight.reshape(-1, 1, rows, cols):  # a stack of one at a time
            try:
                q, scale = quantize_weight(matrix, fmt)
            except FormatError as error:
                raise FormatError(f"{self._source.root}: {origin}: {error}") from None
            digits.append(layout.pack(q))
            scales.append(scale)
        if weight.ndim == 2:
            return digits[0][0], scales[0][0]
        scale = torch.cat(scales)
        gain = origin.removesuffix("down_proj") + "gain"
        if origin.endswith("down_proj") and gain in self._source.tensors:
            scale = scale * self._source.read(gain, finite=True).float().view(-1, *[1] * (scale.ndim - 1))
        return torch.cat(digits), scale
