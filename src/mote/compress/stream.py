"""Packing a checkpoint on disk, matrix by matrix, so that memory does not grow with the model.

The stack of each projection becomes `<stack>_packed` and `<stack>_scale`; a gain is folded into the down scale. A
linear that is to be packed becomes `<module>.packed` and `<module>.scale` where `<module>.weight` was: a shared expert
on a ternary grid, and what the settings name. Everything else is copied as it is.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mote.checkpoint.contract import MODEL_TYPE
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.layout import Linear, codec_of, decoder_prefixes
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.writer import DEFAULT_SHARD_BYTES, write_checkpoint
from mote.compress.config import PackConfig
from mote.compress.targets import Targets, find_targets
from mote.errors import CheckpointError, FormatError
from mote.model.families import PROJECTIONS
from mote.model.guard import BASE_KEY
from mote.model.opening import open_config
from mote.model.packed import PackedMatrix


def pack_checkpoint(
    checkpoint: Path,
    out: Path,
    config: PackConfig,
    *,
    force: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Reads the up-cycled (or dense) `checkpoint`, writes the packed `out` atomically and returns it opened.

    progress: as `write_checkpoint` has it. Raises CheckpointError (dense with nothing to pack, packed
    already, damaged, NaN or Inf, disk full, `out` in use without force), FormatError (a grid that no codec holds) or
    UnsupportedModelError (a matrix that is to be packed is not there).
    """
    source = Checkpoint.open(checkpoint)
    layers = decoder_prefixes(source.tensors)
    every_layer = source.mote is None or source.mote.layers == tuple(layers)
    contract = config.contract(source.mote, str(checkpoint), every_layer=every_layer)
    provenance = Provenance.start("pack", config=config, seed=None, parent=source)
    tied, repeated = _tie(source) if config.head != "none" else (False, "")
    shapes = {name: info.shape for name, info in source.tensors.items()}
    packer = _Packer(source, find_targets(contract, shapes, str(checkpoint), tied=tied), repeated)
    return write_checkpoint(
        out,
        config={
            **source.config,
            "model_type": MODEL_TYPE,
            BASE_KEY: source.config.get(BASE_KEY, source.config["model_type"]),
            "quantization_config": packer.contract.to_dict(),
        },
        tensors=packer.plan(),
        produce=packer.produce,
        lineage=provenance,
        carry_from=checkpoint,
        max_shard_bytes=max_shard_bytes,
        force=force,
        progress=progress,
    )


class _Packer:
    """Plans and makes the tensors of a packed checkpoint from those of another one, leaving out `repeated`."""

    def __init__(self, source: Checkpoint, targets: Targets, repeated: str) -> None:
        self.contract = targets.contract
        self._source = source
        self._formats = targets.formats
        self._repeated = repeated
        self._origin: dict[str, tuple[str, PackedMatrix]] = {}
        self._scales: dict[str, Tensor] = {}

    def plan(self) -> list[PlannedTensor]:
        """All tensors of the output, in the source's order."""
        planned: list[PlannedTensor] = []
        for name, info in self._source.tensors.items():
            if name.endswith(".experts.gain") or name == self._repeated:
                continue
            target = self._target(name)
            if target is None:
                planned.append(PlannedTensor(name, info.dtype, info.shape))
                continue
            packed, scale, linear = target
            lead = info.shape[:-2]
            (_, digits), ((dtype,), scales) = linear.expected("").values()
            planned.append(PlannedTensor(packed, "U8", (*lead, *digits)))
            planned.append(PlannedTensor(scale, dtype, (*lead, *scales)))
            layout = PackedMatrix(rows=linear.rows, cols=linear.cols, format=linear.format, codec=linear.codec)
            self._origin[packed] = self._origin[scale] = (name, layout)
        return planned

    def produce(self, name: str) -> Tensor:
        """The tensor `name` of the output."""
        if name not in self._origin:
            return self._source.read(name, finite=True)
        if name in self._scales:
            return self._scales.pop(name)
        packed, scale = self._pack(*self._origin[name])
        if name.endswith("scale"):
            return scale
        self._scales[name.removesuffix("packed") + "scale"] = scale
        return packed

    def _target(self, name: str) -> tuple[str, str, Linear] | None:
        """Names of digits and scales that replace the tensor `name`, and their sizes; None when it is copied."""
        owner, _, last = name.rpartition(".")
        if owner.endswith(".mlp.experts") and last in PROJECTIONS:
            fmt, names = self.contract.routed, (f"{name}_packed", f"{name}_scale")
        elif last == "weight" and owner in self._formats:
            fmt, names = self._formats[owner], (f"{owner}.packed", f"{owner}.scale")
        else:
            return None
        rows, cols = self._source.info(name).shape[-2:]
        return *names, Linear(rows, cols, fmt, codec_of(self.contract, fmt) or "")

    def _pack(self, origin: str, layout: PackedMatrix) -> tuple[Tensor, Tensor]:
        """Quantises and packs a matrix, or a stack one expert at a time."""
        weight = self._source.read(origin, finite=True)
        try:
            if weight.ndim == 2:
                return layout.encode(weight)
            packed, scales = zip(*(layout.encode(matrix) for matrix in weight), strict=True)
        except FormatError as error:
            raise FormatError(f"{self._source.root}: {origin}: {error}") from None
        scale = torch.stack(scales)
        gain = origin.removesuffix("down_proj") + "gain"
        if origin.endswith("down_proj") and gain in self._source.tensors:
            scale = scale * self._source.read(gain, finite=True).float().view(-1, *[1] * (scale.ndim - 1))
        return torch.stack(packed), scale


def _tie(source: Checkpoint) -> tuple[bool, str]:
    """(whether the head is the embedding, name of a tensor that repeats it or "").

    A head that is in the files may still be tied, by a config whose default says so and which some writers then leave
    out: transformers' class knows. Raises CheckpointError when config says tied and the two differ, or untied and there
    is no head.
    """
    tied = bool(getattr(open_config(source), "tie_word_embeddings", False))
    head = next((name for name in source.tensors if name == "lm_head.weight" or name.endswith(".lm_head.weight")), "")
    if not head and not tied:
        raise CheckpointError(f"{source.root}: lacks lm_head.weight, which config.json asks for; fetch it again")
    if not head or not tied:
        return tied, ""
    table = next((name for name in source.tensors if name.endswith("embed_tokens.weight")), "")
    if not table or not torch.equal(source.read(head), source.read(table)):
        raise CheckpointError(
            f"{source.root}: config.json ties the head to the embedding, but {head} is another matrix; correct "
            "tie_word_embeddings"
        )
    return True, head
