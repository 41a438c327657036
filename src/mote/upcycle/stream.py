"""Up-cycling a checkpoint on disk, tensor by tensor, so that memory holds one stack of experts at a time.

Dense tensors are copied as they are; beside each network of a chosen layer appear a router (fp32) and three stacks of
experts in the dtype of the network they copy, which loses nothing: in memory they become fp32 master weights.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from mote.checkpoint.contract import MODEL_TYPE
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.layout import matrix_shape
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.writer import DEFAULT_SHARD_BYTES, write_checkpoint
from mote.model.families import PROJECTIONS, placement
from mote.model.guard import BASE_KEY
from mote.upcycle.config import UpcycleConfig
from mote.upcycle.donor import Donor
from mote.upcycle.initialise import expert_weights, gain, router_weight
from mote.upcycle.warning import warn_if_small

Maker = Callable[[], Tensor]


def upcycle_checkpoint(
    checkpoint: Path,
    out: Path,
    config: UpcycleConfig,
    *,
    force: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Reads the dense `checkpoint`, writes the up-cycled `out` atomically and returns it opened.

    progress: as `write_checkpoint` has it. Raises CheckpointError (not dense, damaged, NaN or Inf, disk
    full, `out` in use without force), UnsupportedModelError (no SwiGLU layers found), FormatError (settings).
    """
    source = Checkpoint.open(checkpoint)
    dense = Donor(source)
    layers = placement(config.placement, dense.anatomy.num_layers, config.layers)
    donor, inputs = dense, {}
    if config.initialise_from:
        donor = Donor.open(config.initialise_from)
        donor.require(dense.anatomy.hidden_size, dense.anatomy.ffn_size, layers)
        inputs = {"initialise_from": donor.checkpoint.identity()}
    provenance = Provenance.start("upcycle", config=config, seed=config.seed, parent=source, inputs=inputs)
    stack = dense.anatomy.stack.removesuffix("layers")
    warn_if_small(sum(info.numel for name, info in source.tensors.items() if name.startswith(stack)), config.routed)
    plan = _plan(dense, donor, config, layers)
    contract = config.contract(layers, dense.anatomy.hidden_size, dense.anatomy.ffn_size)
    return write_checkpoint(
        out,
        config={
            **source.config,
            "model_type": MODEL_TYPE,
            BASE_KEY: source.config["model_type"],
            "quantization_config": contract.to_dict(),
        },
        tensors=[planned for planned, _ in plan.values()],
        produce=lambda name: plan[name][1](),
        lineage=provenance,
        carry_from=checkpoint,
        max_shard_bytes=max_shard_bytes,
        force=force,
        progress=progress,
    )


def _plan(
    dense: Donor, donor: Donor, config: UpcycleConfig, layers: tuple[int, ...]
) -> dict[str, tuple[PlannedTensor, Maker]]:
    """Every tensor of the output, in the source's order, with the function that makes it."""
    source, anatomy = dense.checkpoint, dense.anatomy
    replaced = {} if config.shared_expert else {anatomy.weight(i, p) for i in layers for p in PROJECTIONS}
    first = {anatomy.weight(layer, PROJECTIONS[0]): layer for layer in layers}
    plan: dict[str, tuple[PlannedTensor, Maker]] = {}
    for name, info in source.tensors.items():
        if name in first:
            for planned, make in _mixture(dense, donor, config, first[name]):
                plan[planned.name] = planned, make
        if name not in replaced:
            plan[name] = PlannedTensor(name, info.dtype, info.shape), _reader(source, name)
    return plan


def _mixture(dense: Donor, donor: Donor, config: UpcycleConfig, layer: int) -> list[tuple[PlannedTensor, Maker]]:
    """Router, experts and gain of one layer."""
    anatomy, ffn, experts = dense.anatomy, dense.anatomy.ffn(layer), config.num_experts
    made: list[tuple[PlannedTensor, Maker]] = [
        (
            PlannedTensor(f"{ffn}.router.weight", "F32", (experts, anatomy.hidden_size)),
            lambda: router_weight(config, layer, anatomy.hidden_size),
        )
    ]
    for name in PROJECTIONS:
        shape = matrix_shape(name, anatomy.hidden_size, anatomy.ffn_size)
        planned = PlannedTensor(f"{ffn}.experts.{name}", donor.dtype(layer, name), (experts, *shape))
        made.append((planned, _copier(donor, config, layer, name)))
    if config.combine == "gated":
        made.append((PlannedTensor(f"{ffn}.experts.gain", "F32", (experts,)), lambda: gain(config)))
    return made


def _copier(donor: Donor, config: UpcycleConfig, layer: int, projection: str) -> Maker:
    return lambda: expert_weights(config, layer, projection, donor.read(layer, projection))


def _reader(source: Checkpoint, name: str) -> Maker:
    return lambda: source.read(name, finite=True)
