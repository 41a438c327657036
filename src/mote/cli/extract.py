"""`mote extract`: what training changed in a dense model, as one small file."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import AsJson, Debug, Force, RecipeFile, Settings, Threads

EXAMPLE = "mote extract runs/assembled runs/dense --out start.safetensors --set max_bytes=8000000"


def run(
    base: Annotated[Path, typer.Argument(help="The model before stages I and II.")],
    trained: Annotated[Path, typer.Argument(help="The same model after them.")],
    out: Annotated[Path, typer.Option("--out", help="File to write; it must not exist unless --force.")],
    recipe: RecipeFile = None,
    set_: Settings = None,
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Keep what training changed in one small file.

    Stores the connector and low-rank factors of the changes of the language model. `mote start` puts them back.
    """
    from mote.assemble import ExtractConfig, extract_start
    from mote.cli.output import emit, human_bytes
    from mote.cli.progress import counted_bytes
    from mote.cli.settings import resolve

    config = resolve(ExtractConfig, "extract", recipe, set_)
    with counted_bytes("comparing") as progress:
        record = extract_start(base, trained, out, config, force=force, progress=progress)
    line = f"{out}: {human_bytes(record['bytes'])}, rank {record['rank']:.1f} on average, "
    emit(record, as_json=as_json, lines=[line + f"{100 * record['kept']:.1f}% of the squared change"])
