"""`mote info`: what a checkpoint is, where it came from, and where its bytes are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mote.cli.options import AsJson, Debug

if TYPE_CHECKING:
    from mote.checkpoint.contract import MoteConfig
    from mote.checkpoint.resident import Resident
    from mote.checkpoint.shards import Checkpoint
    from mote.ternary.format import WeightFormat

EXAMPLE = "mote info runs/small/packed"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, dense, up-cycled or packed.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a checkpoint holds.

    Lineage, layers, experts, and the true bytes of every component.
    """
    print_summary(checkpoint, as_json=as_json)


def print_summary(root: Path, *, as_json: bool) -> None:
    """Prints what `mote info` prints; the verbs that write a checkpoint end with it."""
    from mote.checkpoint.accounting import describe
    from mote.checkpoint.resident import available_memory, memory_warning
    from mote.checkpoint.shards import Checkpoint
    from mote.cli.failures import say
    from mote.cli.output import emit

    checkpoint = Checkpoint.open(root)
    described, warning = describe(checkpoint), ""
    if "paper_gib" in described and checkpoint.state != "upcycled":  # what the engine runs
        needs, context = _needs(checkpoint)
        described |= {"context": context, "resident_bytes": needs.total, "resident": needs.to_dict()}
        warning = memory_warning(needs, available_memory(), str(root))
    emit(described, as_json=as_json, lines=_lines(checkpoint, described))
    if warning:
        say(warning)


def _needs(checkpoint: "Checkpoint") -> "tuple[Resident, int]":
    """What the engine takes for a text and a picture, as `mote plan` counts it, and the tokens of that text."""
    from mote.checkpoint.environment import processor_has_bf16
    from mote.checkpoint.resident import CONTEXT, resident
    from mote.plan.skeleton import of_checkpoint

    image_tokens, positions = of_checkpoint(checkpoint)
    context = min(CONTEXT, positions or CONTEXT)
    needs = resident(
        *(checkpoint.tensors.values(), checkpoint.mote),
        context=context,
        image_tokens=image_tokens,
        tower_bytes_per_weight=2 if processor_has_bf16() else 4,
    )
    return needs, context


def _lines(checkpoint: "Checkpoint", described: dict[str, Any]) -> list[str]:
    from mote.checkpoint.layout import codec_of
    from mote.cli.output import human_bytes, human_seconds, table

    mote, lineage = checkpoint.mote, checkpoint.lineage
    identity = described["id"] or "none (not written by mote)"
    lines = [
        f"{checkpoint.root}: {described['base_model_type']}, {checkpoint.state}",
        f"id {identity}",
    ]
    if lineage is not None:
        verbs = [verb for verb, _ in lineage.ancestors]
        seed = "" if lineage.seed is None else f", seed {lineage.seed}"
        lines.append(f"made by {' > '.join([*verbs, lineage.verb])} in {human_seconds(lineage.wall_seconds)}{seed}")
    if mote is not None and mote.layers:
        routed = mote.routed
        lines += [
            f"{len(mote.layers)} layers of {mote.num_experts} routed experts, top {mote.top_k}, {mote.combine}, "
            + _shared(mote),
            f"routed experts: {_width(routed)}, one {routed.scale} scale per {routed.granularity}, "
            f"activations {routed.activation}, stored {codec_of(mote, routed) or 'as floats'}",
        ]
    if mote is not None:
        lines += _stored(mote)
    sizes = described["true_bytes"]
    rows = [
        (name, f"{count:,}", human_bytes(count))
        for name, count in sizes.items()
        if count and name not in ("tensors", "files")
    ]
    for name, title in (("tensors", "all tensors"), ("files", "weight files")):
        rows.append((title, f"{sizes[name]:,}", human_bytes(sizes[name])))
    return [*lines, "", *table(("component", "bytes", ""), rows), *_planned(described)]


def _planned(described: dict[str, Any]) -> list[str]:
    """What `mote plan` says of a model before it is there."""
    if "paper_gib" not in described:
        return []
    lines = [
        "",
        f"feed-forward networks: {described['paper_gib']:.2f} GiB in the paper's accounting (weights alone), "
        f"{described['ffn_bytes'] / (1 << 30):.2f} as stored",
    ]
    if "resident" in described:
        from mote.cli.output import human_bytes

        needs = described["resident"]
        lines.append(
            f"memory while it answers, {described['context']:,} tokens: {human_bytes(needs['total'])}, of which "
            f"{human_bytes(needs['weights'])} are mapped"
        )
    return lines


def _shared(mote: "MoteConfig") -> str:
    """The shared expert in a few words."""
    if not mote.shared_expert:
        return "no shared expert"
    kept = mote.shared.quantizer == "none"
    return "shared expert in full precision" if kept else f"{mote.shared.quantizer} shared expert"


def _width(fmt: "WeightFormat") -> str:
    """ "int4", or what else an integer format is."""
    return fmt.quantizer if fmt.symmetric else f"{fmt.quantizer} with zero points"


def _stored(mote: "MoteConfig") -> list[str]:
    """One line on what is packed beside routed experts; none when nothing is."""
    from mote.ternary.format import integer_codec

    shared = "feed-forward networks" if not mote.layers else "shared experts"
    classes = ((shared, mote.shared), ("attention", mote.attention), ("head", mote.head), ("vision tower", mote.tower))
    packed = [f"{name} {_width(fmt)} per {fmt.group}" for name, fmt in classes if integer_codec(fmt)]
    if not packed or mote.state != "packed":
        return []
    return [f"also packed: {', '.join(packed)}"]
