"""Packing a checkpoint on disk, matrix by matrix, so that memory does not grow with the model.

The stack of each projection becomes `<stack>_packed` and `<stack>_scale`; a gain is folded into the down projection. A
linear that is to be packed becomes `<module>.packed` and `<module>.scale` where `<module>.weight` was: a shared expert
on a ternary grid, and what the settings name. Grids that are not symmetric have a third, `zero`. Everything else is
copied as it is.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mote.checkpoint.contract import MODEL_TYPE
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.layout import Expected, Linear, codec_of, decoder_prefixes, gain_of
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.planned import stated_head
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.writer import DEFAULT_SHARD_BYTES, planned_files, write_checkpoint
from mote.compress.config import PackConfig
from mote.compress.targets import Targets, find_targets
from mote.errors import CheckpointError, FormatError
from mote.model.experts import encode_stack
from mote.model.families import PROJECTIONS
from mote.model.guard import BASE_KEY
from mote.model.opening import open_config
from mote.model.packed import PackedMatrix
from mote.ternary.integers import PackedTensors

Given = Callable[[str, PackedMatrix], PackedTensors | None]
"""Packed form of the matrix, or stack of matrices, that was the tensor of that name; None: round it here."""


def pack_checkpoint(
    checkpoint: Path,
    out: Path,
    config: PackConfig,
    *,
    force: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
    given: Given | None = None,
    provenance: Provenance | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Checkpoint:
    """Reads the up-cycled (or dense) `checkpoint`, writes the packed `out` atomically and returns it opened.

    progress: as `write_checkpoint` has it. given: what was made elsewhere. provenance: of the stage that did, instead
    of one of our own. files: further small files by name. Raises CheckpointError (dense with nothing to pack, packed
    already, damaged, NaN or Inf, disk full, `out` in use without force), FormatError (a grid that no codec holds) or
    UnsupportedModelError (a matrix that is to be packed is not there).
    """
    source = Checkpoint.open(checkpoint)
    provenance = provenance or Provenance.start("pack", config=config, seed=None, parent=source)
    packer = _Packer(source, *what_to_pack(source, config), given)
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
        files=files,
        max_shard_bytes=max_shard_bytes,
        force=force,
        progress=progress,
    )


def packed_bytes(source: Checkpoint, targets: Targets, repeated: str) -> int:
    """Bytes of the weight files that `pack_checkpoint` will write; targets, repeated: what `what_to_pack` gave."""
    return sum(planned_files(_Packer(source, targets, repeated, None).plan()).values())


def what_to_pack(source: Checkpoint, config: PackConfig) -> tuple[Targets, str]:
    """(targets in `source`, name of a tensor that repeats the embedding and is left out, or ""). Raises MoteError as
    `pack_checkpoint` does."""
    layers = decoder_prefixes(source.tensors)
    every_layer = source.mote is None or source.mote.layers == tuple(layers)
    contract = config.contract(source.mote, str(source.root), every_layer=every_layer)
    tied, repeated = _tie(source) if config.head != "none" else (False, "")
    shapes = {name: info.shape for name, info in source.tensors.items()}
    return find_targets(contract, shapes, str(source.root), tied=tied), repeated


class _Packer:
    """Plans and makes the tensors of a packed checkpoint from those of another one, leaving out `repeated`."""

    def __init__(self, source: Checkpoint, targets: Targets, repeated: str, given: Given | None) -> None:
        self.contract = targets.contract
        self._source = source
        self._formats = targets.formats
        self._repeated = repeated
        self._given = given
        self._origin: dict[str, tuple[str, PackedMatrix]] = {}
        self._made: dict[str, Tensor] = {}

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
            linear, expected = target
            layout = PackedMatrix(rows=linear.rows, cols=linear.cols, format=linear.format, codec=linear.codec)
            for part, ((dtype,), shape) in expected.items():
                planned.append(PlannedTensor(part, dtype, shape))
                self._origin[part] = (name, layout)
        return planned

    def produce(self, name: str) -> Tensor:
        """The tensor `name` of the output."""
        if name not in self._origin:
            return self._source.read(name, finite=True)
        if name not in self._made:
            stem = name[: name.rindex("packed")] if name.endswith("packed") else name.removesuffix("scale")
            for part, tensor in self._pack(*self._origin[name])._asdict().items():
                if tensor is not None:
                    self._made[f"{stem}{part}"] = tensor
        return self._made.pop(name)

    def _target(self, name: str) -> tuple[Linear, dict[str, Expected]] | None:
        """What replaces the tensor `name`: a packed linear, or a stack of them, and its tensors; None when it is
        copied."""
        owner, _, last = name.rpartition(".")
        stacked = owner.endswith(".mlp.experts") and last in PROJECTIONS
        if not stacked and (last != "weight" or owner not in self._formats):
            return None
        fmt = self.contract.routed if stacked else self._formats[owner]
        codec = codec_of(self.contract, fmt)
        if codec is None:
            return None
        *experts, rows, cols = self._source.info(name).shape
        linear = Linear(rows, cols, fmt, codec)
        return linear, linear.stack(name, *experts) if stacked else linear.expected(owner)

    def _pack(self, origin: str, layout: PackedMatrix) -> PackedTensors:
        """Quantises and packs a matrix, or a stack one expert at a time, unless somebody else did."""
        if self._given is not None and (made := self._given(origin, layout)) is not None:
            return made
        weight = self._source.read(origin, finite=True)
        gain = gain_of(origin, self._source.tensors)
        try:
            if weight.ndim == 2:
                return layout.encode(weight)
            return encode_stack(layout, weight, self._source.read(gain, finite=True) if gain else None)
        except FormatError as error:
            raise FormatError(f"{self._source.root}: {origin}: {error}") from None


def _tie(source: Checkpoint) -> tuple[bool, str]:
    """(whether the head is the embedding, name of a tensor that repeats it or "").

    A head that is in the files may still be tied, by a config whose default says so and which some writers then leave
    out: transformers' class knows. Raises CheckpointError when config says tied and the two differ, or untied and there
    is no head.
    """
    tied = bool(getattr(open_config(source), "tie_word_embeddings", False))
    module = stated_head(source.tensors, source.root, tied=tied)
    if not module or not tied:
        return tied, ""
    head = f"{module}.weight"
    table = next((name for name in source.tensors if name.endswith("embed_tokens.weight")), "")
    if not table or not torch.equal(source.read(head), source.read(table)):
        raise CheckpointError(
            f"{source.root}: config.json ties the head to the embedding, but {head} is another matrix; correct "
            "tie_word_embeddings"
        )
    return True, head
