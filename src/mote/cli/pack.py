"""`mote pack`: the routed experts of an up-cycled checkpoint as 2-bit or 1.6-bit tensors."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import AsJson, Debug, Force, Out, RecipeFile, Settings, Threads

EXAMPLE = "mote pack runs/mote --out runs/packed --set codec=base3"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Up-cycled checkpoint.")],
    out: Out,
    recipe: RecipeFile = None,
    set_: Settings = None,
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Store the experts in 2 or 1.6 bits.

    Quantises the routed experts and writes them in the order that the kernels read.
    """
    from mote.cli.info import print_summary
    from mote.cli.progress import counted_bytes
    from mote.cli.settings import resolve
    from mote.compress.config import PackConfig
    from mote.compress.stream import pack_checkpoint

    config = resolve(PackConfig, "pack", recipe, set_)
    with counted_bytes("packing") as progress:
        pack_checkpoint(checkpoint, out, config, force=force, progress=progress)
    print_summary(out, as_json=as_json)
