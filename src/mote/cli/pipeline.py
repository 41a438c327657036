"""`mote pipeline`: a whole recipe, step by step; what is done is not done again."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import AsJson, Debug, Seed, Settings, Threads

EXAMPLE = "mote pipeline recipes/small.yaml --out runs/small"


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory of the run [default: runs/NAME of the recipe]")
    ] = None,
    set_: Settings = None,
    seed: Seed = None,
    threads: Threads = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run a whole recipe.

    Draws data, assembles, trains in three stages with up-cycling between, packs, evaluates and reports. Run
    the same command again after an interruption, or after a change of settings: only what is missing or
    changed, and what follows from it, is done.
    """
    import json

    from mote.recipe import read_recipe

    read_recipe(recipe)  # a missing file need not wait for the imports below

    from mote.cli.experiment import read_experiment, steps_of
    from mote.cli.failures import say
    from mote.cli.steps import run_steps

    experiment = read_experiment(recipe, set_ or (), seed)
    root = out or Path("runs") / recipe.stem
    command = f"mote pipeline {recipe} --out {root}" + "".join(f" --set {setting}" for setting in set_ or ())
    run_steps(root, steps_of(experiment, recipe, command), say=say if as_json else print)
    if as_json:
        print(json.dumps(json.loads((root / "report.json").read_text(encoding="utf-8")), indent=2))
    else:
        print(f"report: {root / 'report.html'}")
