"""The options that every verb shares, with one meaning each."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def _set_threads(threads: int) -> int:
    """Bounds every thread pool of this process; it runs while arguments are parsed, before torch is there."""
    if threads > 0:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MOTE_NUM_THREADS"):
            os.environ[name] = str(threads)
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(threads)
    return threads


Out = Annotated[Path, typer.Option("--out", help="Directory to write; it must not exist unless --force.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may stand several times."),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="Take this verb's settings from its section of a recipe."),
]
STORAGE = "none|int2|int3|int4|int6|int8"
Shared = Annotated[str | None, typer.Option("--shared", metavar=STORAGE, help="Shared experts, dense networks.")]
Attention = Annotated[str | None, typer.Option("--attention", metavar=STORAGE, help="q, k, v, o.")]
Head = Annotated[str | None, typer.Option("--head", metavar=STORAGE, help="LM head, and tied embedding.")]
Tower = Annotated[str | None, typer.Option("--tower", metavar=STORAGE, help="Vision tower; int8 is faster too.")]
Group = Annotated[int | None, typer.Option("--group", help="Inputs per scale: 32, 64 or 128 [default: 64]")]
Experts = Annotated[str | None, typer.Option("--experts", metavar=STORAGE, help="Routed experts that are not ternary.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random [default: the settings']")]
Threads = Annotated[
    int, typer.Option("--threads", callback=_set_threads, help="CPU threads; 0: as many as there are cores.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what --out names, once the new one is complete.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from what an interrupted run left.")]
