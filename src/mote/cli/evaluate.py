"""`mote evaluate`: one stated metric per skill, with intervals."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import AsJson, Debug, Force, RecipeFile, Seed, Settings, Threads

EXAMPLE = "mote evaluate runs/small/packed --data runs/small/data/test.jsonl --out runs/scores"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, dense, up-cycled or packed.")],
    data: Annotated[Path, typer.Option("--data", help="LLaVA-style JSON or JSONL file with pictures and answers.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory for the scores and a log of every question.")
    ] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Zero the pictures' features.")] = False,
    recipe: RecipeFile = None,
    set_: Settings = None,
    seed: Seed = None,
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score a model on a data file.

    Every skill gets its metric and a 95% interval; a log of every question goes to --out.
    """
    from dataclasses import replace

    from mote.cli.output import emit, table
    from mote.cli.scoring import open_scorer
    from mote.cli.settings import resolve
    from mote.evaluate import EvaluateConfig
    from mote.evaluate.run import evaluate_checkpoint

    config = resolve(EvaluateConfig, "evaluate", recipe, set_, seed)
    if blind:
        config = replace(config, blind=True)
    result = evaluate_checkpoint(checkpoint, data, config, out=out, force=force, open_scorer=open_scorer)
    rows = [
        (name, score.metric, score.n, f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}")
        for name, score in [*result.skills.items(), ("average", result.average)]
    ]
    emit(
        result.to_plain(),
        as_json=as_json,
        lines=table(("skill", "metric", "n", "score", "95% interval"), rows),
    )
