"""`mote plan`: what a model will take, before it is made, and what fits a budget or a device."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mote.cli.options import AsJson, Debug

if TYPE_CHECKING:
    from mote.plan.budget import Space
    from mote.plan.choice import Choice
    from mote.plan.skeleton import Skeleton

EXAMPLE = "mote plan --model qwen2.5-3b --experts 4 --shared int4 --budget 3.4GiB"
STORAGE = "none|int8|int6|int4|int3|int2"
CONTEXT = 2048
"""Tokens, where the model has as many positions."""


def run(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME|PATH", help="Known name, config.json, checkpoint, or hub id.")
    ],
    kind: Annotated[str, typer.Option("--kind", metavar="mote|moe-llava|dense", help="What is made of it.")] = "mote",
    experts: Annotated[
        int | None, typer.Option("--experts", min=1, help="Routed experts of each layer [default: 4].")
    ] = None,
    experts_format: Annotated[
        str | None, typer.Option("--experts-format", metavar=f"ternary|{STORAGE}", help="Of routed experts.")
    ] = None,
    codec: Annotated[str | None, typer.Option("--codec", metavar="base3|2bit", help="Of ternary experts.")] = None,
    shared: Annotated[str | None, typer.Option("--shared", metavar=STORAGE, help="Shared experts.")] = None,
    attention: Annotated[str | None, typer.Option("--attention", metavar=STORAGE, help="q, k, v, o.")] = None,
    head: Annotated[str | None, typer.Option("--head", metavar=STORAGE, help="Head, and tied embedding.")] = None,
    group: Annotated[int, typer.Option("--group", help="Inputs per scale of the integers: 32, 64, 128.")] = 64,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="Zero points beside the scales (pack: symmetric=false).")
    ] = False,
    placement: Annotated[
        str, typer.Option("--placement", help="Layers with a mixture: dense, sparse, first_half, second_half.")
    ] = "dense",
    vision: Annotated[
        str | None, typer.Option("--vision", metavar="NAME|none", help="Vision tower to join, by a known name.")
    ] = None,
    image_size: Annotated[int, typer.Option("--image-size", min=0, help="Pixels; 0: as the model says.")] = 0,
    images: Annotated[int, typer.Option("--images", min=0, help="Pictures in the context.")] = 1,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Tokens that are kept, pictures' too [default: 2048].")
    ] = None,
    kv: Annotated[str, typer.Option("--kv", help="Numbers of the key-value cache: bf16 or f32.")] = "bf16",
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="SIZE|device", help="Search what fits, such as 3.4GiB.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="paper|ffn|file|resident", help="What the budget counts [default: paper]."),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="Machine to run on, several times [default: this].")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Plans to list.")] = 12,
    studies: Annotated[Path, typer.Option("--studies", help="Reports with measured accuracies.")] = Path("studies"),
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Picture to draw, .svg or .png.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what a model will take, without weights.

    Feed-forward bytes in the paper's accounting, true bytes of the files, memory in use; and, with a budget, the plans
    that are worth it and what else the same bytes buy.
    """
    from mote.cli.output import emit
    from mote.cli.plan_tables import lines
    from mote.plan.choice import Choice
    from mote.plan.measure import Use
    from mote.plan.skeleton import open_skeleton
    from mote.plan.survey import survey

    skeleton = open_skeleton(model, vision=vision, image_size=image_size)
    mixed = kind != "dense"
    asked = Choice(
        kind=kind,  # type: ignore[arg-type]
        experts=(experts or 4) if mixed else 0,
        experts_format=experts_format or ("ternary" if kind == "mote" else "none"),
        codec=codec or "base3",  # type: ignore[arg-type]
        shared=shared or "none",
        attention=attention or "none",
        head=head or "none",
        group=group,
        symmetric=not asymmetric,
        layers=_layers(placement, skeleton) if mixed else (),
    )
    limit = min(CONTEXT, skeleton.positions or CONTEXT)
    found = survey(
        skeleton,
        asked,
        Use(context=context or limit, images=images, kv=kv),
        budget=budget,
        on=on,
        space=_space(asked, experts, codec, shared, attention, head),
        devices=device or ["this"],
        studies=studies,
    )
    if plot is not None:
        from mote.plan.picture import draw

        draw(found, plot, rows=rows)
    emit(found.to_dict(), as_json=as_json, lines=() if as_json else lines(found, rows=rows), whole=True)
    if plot is not None and not as_json:
        print(f"\ndrawn: {plot}")


def _layers(placement: str, skeleton: "Skeleton") -> tuple[int, ...]:
    from mote.model.families import placement as place

    return () if placement == "dense" else place(placement, skeleton.layers)


def _space(asked: "Choice", experts: int | None, *given: Any) -> "Space":
    """What a budget searches: everything that was not asked for by an option."""
    from mote.plan.budget import Space

    names = ("codecs", "shared", "attention", "head")
    fixed: dict[str, Any] = {name: (value,) for name, value in zip(names, given, strict=True) if value is not None}
    return Space(**fixed) if experts is None else Space(**fixed, experts=(experts,))
