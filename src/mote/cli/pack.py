"""`mote pack`: the routed experts of an up-cycled checkpoint in 2 or 1.6 bits, and the rest in 2 to 8 where asked."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import AsJson, Debug, Force, Out, RecipeFile, Settings, Threads

EXAMPLE = "mote pack runs/mote --out runs/packed --shared int4 --attention int8 --head int4"
STORAGE = "none|int2|int3|int4|int6|int8"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Up-cycled checkpoint, or a dense one with --shared and so on.")],
    out: Out,
    shared: Annotated[str | None, typer.Option("--shared", metavar=STORAGE, help="Shared experts.")] = None,
    attention: Annotated[str | None, typer.Option("--attention", metavar=STORAGE, help="q, k, v, o.")] = None,
    head: Annotated[str | None, typer.Option("--head", metavar=STORAGE, help="Head, and tied embedding.")] = None,
    experts: Annotated[
        str | None, typer.Option("--experts", metavar=STORAGE, help="Routed experts that are not ternary.")
    ] = None,
    group: Annotated[int | None, typer.Option("--group", help="Inputs per scale of integers: 32, 64, 128.")] = None,
    recipe: RecipeFile = None,
    set_: Settings = None,
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Store the experts in 2 or 1.6 bits.

    Quantises the routed experts and writes them in the order that the kernels read; where asked, also shared experts,
    attention and head, and experts that were trained in full precision, rounded to nearest.
    """
    from mote.cli.info import print_summary
    from mote.cli.progress import counted_bytes
    from mote.cli.settings import resolve
    from mote.compress.config import PackConfig
    from mote.compress.stream import pack_checkpoint

    options = {"shared": shared, "attention": attention, "head": head, "experts": experts, "group": group}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    config = resolve(PackConfig, "pack", recipe, [*(set_ or ()), *given])
    with counted_bytes("packing") as progress:
        pack_checkpoint(checkpoint, out, config, force=force, progress=progress)
    print_summary(out, as_json=as_json)
