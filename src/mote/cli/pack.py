"""`mote pack`: the routed experts of an up-cycled checkpoint in 2 or 1.6 bits, and the rest in 2 to 8 where asked."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import (
    AsJson,
    Attention,
    Debug,
    Experts,
    Force,
    Group,
    Head,
    Out,
    RecipeFile,
    Settings,
    Shared,
    Threads,
    Tower,
)

EXAMPLE = "mote pack runs/mote --out runs/packed --shared int4 --attention int8 --head int4"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Up-cycled checkpoint, or a dense one with --shared and so on.")],
    out: Out,
    shared: Shared = None,
    attention: Attention = None,
    head: Head = None,
    tower: Tower = None,
    experts: Experts = None,
    group: Group = None,
    recipe: RecipeFile = None,
    set_: Settings = None,
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Pack a model: experts in 1.6 or 2 bits, the rest in 2 to 8 where asked.

    Quantises the routed experts and writes them in the order that the kernels read; where asked, also shared experts,
    attention, head and vision tower, and experts that were trained in full precision, rounded to nearest.
    """
    from mote.cli.info import print_summary
    from mote.cli.progress import counted_bytes
    from mote.cli.settings import resolve
    from mote.compress.config import PackConfig
    from mote.compress.stream import pack_checkpoint

    storages = {"shared": shared, "attention": attention, "head": head, "tower": tower, "experts": experts}
    options = {**storages, "group": group}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    config = resolve(PackConfig, "pack", recipe, [*(set_ or ()), *given])
    with counted_bytes("packing") as progress:
        pack_checkpoint(checkpoint, out, config, force=force, progress=progress)
    print_summary(out, as_json=as_json)
