"""`mote plan`: what a model will take, before it is made, and what fits a budget or a device."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from mote.cli.options import STORAGE, AsJson, Attention, Debug, Group, Head, Shared, Tower
from mote.upcycle.config import Placement as Rule

if TYPE_CHECKING:
    from mote.plan.budget import Space
    from mote.plan.choice import Choice
    from mote.plan.skeleton import Skeleton
    from mote.plan.survey import Survey

EXAMPLE = "mote plan --model qwen2.5-3b --experts 4 --shared int4 --budget 3.4GiB"
PLACEMENTS = tuple(rule for rule in get_args(Rule) if rule != "explicit")
Model = Annotated[
    str, typer.Option("--model", metavar="NAME|PATH", help="Known name, config.json, checkpoint, or hub id.")
]
Kind = Annotated[str, typer.Option("--kind", metavar="mote|moe-llava|dense", help="What is made of it.")]
Experts = Annotated[int | None, typer.Option("--experts", min=1, help="Routed experts of each layer [default: 4].")]
ExpertsFormat = Annotated[
    str | None, typer.Option("--experts-format", metavar=f"ternary|{STORAGE}", help="Of routed experts.")
]
Codec = Annotated[str | None, typer.Option("--codec", metavar="base3|2bit", help="Of ternary experts.")]
Asymmetric = Annotated[
    bool, typer.Option("--asymmetric", help="Zero points beside the scales (pack: symmetric=false).")
]
Placement = Annotated[str, typer.Option("--placement", help=f"Layers with a mixture: {', '.join(PLACEMENTS)}.")]
Vision = Annotated[
    str | None, typer.Option("--vision", metavar="NAME|none", help="Vision tower to join, by a known name.")
]
ImageSize = Annotated[int, typer.Option("--image-size", min=0, help="Pixels; 0: as the model says.")]
Images = Annotated[int, typer.Option("--images", min=0, help="Pictures in the context.")]
Context = Annotated[
    int | None, typer.Option("--context", min=1, help="Tokens that are kept, pictures' too [default: 2048].")
]
Cache = Annotated[str, typer.Option("--kv", help="Dtype of the key-value cache: bf16 or f32.")]
Budget = Annotated[
    str | None, typer.Option("--budget", metavar="SIZE|device", help="Search what fits, such as 3.4GiB.")
]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="paper|ffn|file|resident", help="What the budget counts [default: paper]."),
]
Devices = Annotated[
    list[str] | None, typer.Option("--device", help="Machine to run on, several times [default: this].")
]
Rows = Annotated[int, typer.Option("--rows", min=1, help="Plans to list.")]
Studies = Annotated[Path, typer.Option("--studies", help="Reports with measured accuracies.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Picture to draw, .svg or .png.")]


def run(
    model: Model,
    kind: Kind = "mote",
    experts: Experts = None,
    experts_format: ExpertsFormat = None,
    codec: Codec = None,
    shared: Shared = None,
    attention: Attention = None,
    head: Head = None,
    tower: Tower = None,
    group: Group = None,
    asymmetric: Asymmetric = False,
    placement: Placement = "dense",
    vision: Vision = None,
    image_size: ImageSize = 0,
    images: Images = 1,
    context: Context = None,
    kv: Cache = "bf16",
    budget: Budget = None,
    on: On = None,
    device: Devices = None,
    rows: Rows = 12,
    studies: Studies = Path("studies"),
    plot: Plot = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what a model will take, without weights.

    Feed-forward bytes in the paper's accounting, true bytes of the files, memory in use; and, with a budget, the plans
    that are worth it and what else the same bytes buy.
    """
    from mote.checkpoint.resident import CONTEXT
    from mote.plan.choice import Choice
    from mote.plan.measure import Use
    from mote.plan.skeleton import open_skeleton
    from mote.plan.survey import survey

    routed = experts_format or ("ternary" if kind == "mote" else "none")
    _refuse_contradictions(kind, experts, experts_format, codec, placement, routed)
    skeleton = open_skeleton(model, vision=vision, image_size=image_size)
    mixed = kind != "dense"
    asked = Choice(
        kind=kind,  # type: ignore[arg-type]
        experts=(experts or 4) if mixed else 0,
        experts_format=routed,
        codec=codec or "base3",  # type: ignore[arg-type]
        shared=shared or "none",
        attention=attention or "none",
        head=head or "none",
        tower=tower or "none",
        group=64 if group is None else group,
        symmetric=not asymmetric,
        layers=_layers(placement, skeleton) if mixed else (),
    )
    use = Use(context=context or min(CONTEXT, skeleton.positions or CONTEXT), images=images, kv=kv)
    space = _space(asked, experts, codec, shared, attention, head)
    devices = device or ["this"]
    found = survey(skeleton, asked, use, budget=budget, on=on, space=space, devices=devices, studies=studies)
    _show(found, rows, plot, as_json=as_json)


def _show(found: "Survey", rows: int, plot: Path | None, *, as_json: bool) -> None:
    """Prints what was found, and draws it where a file is named."""
    from mote.cli.output import emit
    from mote.cli.plan_tables import lines

    if plot is not None:
        from mote.plan.picture import draw

        draw(found, plot, rows=rows)
    emit(found.to_dict(), as_json=as_json, lines=() if as_json else lines(found, rows=rows), whole=True)
    if plot is not None and not as_json:
        print(f"\ndrawn: {plot}")


def _refuse_contradictions(
    kind: str, experts: int | None, experts_format: str | None, codec: str | None, placement: str, routed: str
) -> None:
    """Raises PlanError for options that say nothing of what is planned."""
    from mote.errors import PlanError

    if kind == "dense" and (experts or experts_format or codec or placement != "dense"):
        raise PlanError(
            "plan: a dense model has no experts; leave out --experts, --experts-format, --codec and --placement"
        )
    if placement not in PLACEMENTS:
        raise PlanError(f"plan: placement={placement!r} is unknown; use one of {', '.join(PLACEMENTS)}")
    if codec and routed != "ternary":
        raise PlanError(
            f"plan: codec={codec} is for ternary experts; leave out --codec, or say --experts-format ternary"
        )


def _layers(placement: str, skeleton: "Skeleton") -> tuple[int, ...]:
    from mote.model.families import placement as place

    return () if placement == "dense" else place(placement, skeleton.layers)


def _space(asked: "Choice", experts: int | None, *given: Any) -> "Space":
    """What a budget searches: everything that was not asked for by an option."""
    from mote.plan.budget import Space

    names = ("codecs", "shared", "attention", "head")
    fixed: dict[str, Any] = {name: (value,) for name, value in zip(names, given, strict=True) if value is not None}
    return Space(**fixed) if experts is None else Space(**fixed, experts=(experts,))
