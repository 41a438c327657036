"""`mote data validate` and `mote data draw`."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import AsJson, Debug, RecipeFile, Seed, Settings, Threads

app = typer.Typer(help="Check and draw training data.", rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: mote data validate train.jsonl")
def validate(
    file: Annotated[Path, typer.Argument(help="LLaVA-style JSON or JSONL file.")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List all bad rows of a file."""
    from mote.cli.output import emit
    from mote.data.validation import validate as problems_of

    problems = [str(problem) for problem in problems_of(file)]
    verdict = f"{file}: {len(problems)} problems" if problems else f"{file}: no problem"
    emit({"file": str(file), "problems": problems}, as_json=as_json, lines=[*problems, verdict], whole=True)
    if problems:
        raise typer.Exit(1)


@app.command(epilog="Example: mote data draw --recipe recipes/small.yaml --out runs/data")
def draw(
    out: Annotated[Path, typer.Option("--out", help="Directory to write, or to complete.")],
    recipe: RecipeFile = None,
    set_: Settings = None,
    seed: Seed = None,
    threads: Threads = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw the mix of skills.

    Pictures with questions and exact answers, in train, val, test and final splits.
    """
    from mote.cli.output import emit
    from mote.cli.settings import resolve
    from mote.data.draw import MixConfig
    from mote.data.draw import draw as draw_mix

    config = resolve(MixConfig, "data", recipe, set_, seed)
    paths = {split: str(path) for split, path in draw_mix(config, out, progress=not as_json).items()}
    emit(paths, as_json=as_json, lines=paths.values())
