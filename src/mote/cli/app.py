"""The table of verbs. typer draws plain help (no rich), which keeps `mote --help` at a tenth of a second."""

import os
from typing import Annotated

import typer

from mote.cli import (
    ask,
    assemble,
    bench,
    data,
    evaluate,
    export,
    extract,
    info,
    pack,
    pipeline,
    plan,
    quantize,
    start,
    train,
    upcycle,
    verify,
)
from mote.cli.failures import warnings_in_one_line

app = typer.Typer(
    name="mote",
    help="Mixtures of ternary experts: assemble, train, up-cycle, pack and run vision-language models.",
    epilog="Start with: mote pipeline recipes/small.yaml --out runs/small",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from mote import __version__

        print(f"mote {__version__}")
        raise typer.Exit


@app.callback()
def prepare(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Mixtures of ternary experts: assemble, train, up-cycle, pack and run vision-language models."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the verbs have bars of their own
    warnings_in_one_line()


VERBS = (pipeline, assemble, train, extract, start, upcycle, pack, quantize, evaluate, ask, bench, info, plan, verify)
for verb in VERBS:
    app.command(name=verb.__name__.rpartition(".")[2], epilog=f"Example: {verb.EXAMPLE}")(verb.run)
app.add_typer(data.app, name="data")
app.add_typer(export.app, name="export")
