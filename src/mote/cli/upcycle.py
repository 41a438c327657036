"""`mote upcycle`: a dense checkpoint becomes a mixture whose routed experts start as copies of the FFN."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import AsJson, Debug, Force, Out, RecipeFile, Seed, Settings, Threads

EXAMPLE = "mote upcycle runs/dense --out runs/upcycled --set num_experts=8"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Dense checkpoint.")],
    out: Out,
    recipe: RecipeFile = None,
    set_: Settings = None,
    seed: Seed = None,
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Turn a dense model into a mixture.

    Copies every FFN into routed experts; the FFN itself stays as the shared expert.
    """
    from mote.cli.info import print_summary
    from mote.cli.progress import counted_bytes
    from mote.cli.settings import resolve
    from mote.upcycle.config import UpcycleConfig
    from mote.upcycle.stream import upcycle_checkpoint

    config = resolve(UpcycleConfig, "upcycle", recipe, set_, seed)
    with counted_bytes("up-cycling") as progress:
        upcycle_checkpoint(checkpoint, out, config, force=force, progress=progress)
    print_summary(out, as_json=as_json)
