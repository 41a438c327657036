"""`mote verify`: full hashes and every packed tensor of a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import AsJson, Debug, Threads

EXAMPLE = "mote verify runs/small/packed"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint to check.")],
    threads: Threads = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check a checkpoint's every byte.

    Hashes, packed tensors, scales, NaN and Inf; all problems are listed at once.
    """
    from mote.checkpoint.verify import verify
    from mote.cli.output import emit, human_bytes
    from mote.cli.progress import counted_bytes

    with counted_bytes("verifying") as progress:
        found = verify(checkpoint, progress=progress)
    lines = [f"problem: {problem}" for problem in found.problems]
    lines += [f"note: {note}" for note in found.notes]
    verdict = f"{len(found.problems)} problems" if found.problems else "no problem"
    lines.append(f"{checkpoint}: {verdict} in {found.tensors} tensors, {human_bytes(found.bytes)}")
    result = {
        "problems": found.problems,
        "notes": found.notes,
        "tensors": found.tensors,
        "bytes": found.bytes,
    }
    emit(result, as_json=as_json, lines=lines, whole=True)
    if found.problems:
        raise typer.Exit(1)
