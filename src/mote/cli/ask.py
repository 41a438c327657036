"""`mote ask`: one question about one picture, the answer as it comes."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import AsJson, Debug, Threads

EXAMPLE = 'mote ask runs/small/packed picture.png "What is at the top left?"'


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, dense, up-cycled or packed.")],
    image: Annotated[Path, typer.Argument(help="Picture file.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 64,
    threads: Threads = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Ask about a picture.

    The answer is printed as it is generated.
    """
    import json

    from mote.run.assistant import load

    assistant = load(checkpoint)
    stream = None if as_json else lambda text: print(text, end="", flush=True)
    answer = assistant.ask(image, question, stream=stream, max_new_tokens=max_tokens)
    print(json.dumps({"image": str(image), "question": question, "answer": answer}) if as_json else "")
