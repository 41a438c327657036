"""`mote train`: one stage of training."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mote.cli.options import AsJson, Debug, Force, Out, RecipeFile, Resume, Seed, Settings, Threads

EXAMPLE = "mote train runs/upcycled --stage experts --data runs/data --out runs/mote --set max_steps=50"

Stage = Literal["align", "instruct", "experts"]


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint to train.")],
    stage: Annotated[Stage, typer.Option("--stage", help="What trains; see `docs/reference/recipe.md`.")],
    data: Annotated[Path, typer.Option("--data", help="LLaVA-style file, or a folder that was drawn.")],
    out: Out,
    recipe: RecipeFile = None,
    set_: Settings = None,
    seed: Seed = None,
    threads: Threads = 0,
    resume: Resume = False,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train one of three stages.

    align: the connector. instruct: connector and language model. experts: routers and routed experts.
    """
    from mote.cli.info import print_summary
    from mote.cli.settings import resolve
    from mote.train import TrainConfig
    from mote.train.run import train

    config = resolve(TrainConfig, stage, recipe, set_, seed)
    train(checkpoint, out, config, stage=stage, data=data, resume=resume, force=force)
    print_summary(out, as_json=as_json)
