"""`mote start`: stages I and II from a file instead of from training."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import AsJson, Debug, Force, Out, RecipeFile, Settings, Threads

EXAMPLE = "mote start runs/assembled --out runs/dense --set source=package:small"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Assembled checkpoint, the one that the file was made for.")],
    out: Out,
    recipe: RecipeFile = None,
    set_: Settings = None,
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Put what stages I and II learned into a model.

    Takes the connector and low-rank changes of the language model from a file that ships with mote, or that
    `mote extract` wrote.
    """
    from mote.assemble import StartConfig, apply_start
    from mote.cli.info import print_summary
    from mote.cli.progress import counted_bytes
    from mote.cli.settings import resolve

    config = resolve(StartConfig, "start", recipe, set_)
    with counted_bytes("starting") as progress:
        apply_start(checkpoint, out, config, force=force, progress=progress)
    print_summary(out, as_json=as_json)
