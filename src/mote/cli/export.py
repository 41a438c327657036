"""`mote export gguf` and `mote export hf`: the language model in the files of other engines."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mote.cli.options import AsJson, Debug, Force, Out, Threads

if TYPE_CHECKING:
    from mote.export.bailingmoe import GgufExport

app = typer.Typer(help="Write a checkpoint for another engine.", rich_markup_mode=None, add_completion=False)
EXPERTS = "TQ2_0|TQ1_0|Q4_0|Q8_0|BF16|F32"
VISION = "auto|Q4_0|Q8_0|BF16|F32"
OTHERS = "auto|TQ2_0|TQ1_0|Q4_0|Q8_0|BF16|F32"
Source = Annotated[Path, typer.Argument(help="Checkpoint, packed or up-cycled.")]


@app.command(epilog="Example: mote export gguf runs/small/packed --out runs/small/model.gguf")
def gguf(
    checkpoint: Source,
    out: Annotated[Path, typer.Option("--out", help="File to write; it must not exist unless --force.")],
    experts: Annotated[str, typer.Option("--experts", metavar=EXPERTS, help="Routed experts.")] = "TQ2_0",
    shared: Annotated[str, typer.Option("--shared", metavar=OTHERS, help="Shared experts.")] = "auto",
    attention: Annotated[str, typer.Option("--attention", metavar=OTHERS, help="q, k, v, o.")] = "auto",
    head: Annotated[str, typer.Option("--head", metavar=OTHERS, help="LM head, token embedding.")] = "auto",
    vision: Annotated[str, typer.Option("--vision", metavar=VISION, help="Vision tower, connector.")] = "auto",
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a GGUF file for llama.cpp.

    Architecture bailingmoe, with tokenizer and chat template; a vision tower that llama.cpp knows goes to mmproj-FILE
    beside it. auto holds the stored numbers exactly.
    """
    from dataclasses import asdict

    from mote.cli.output import emit
    from mote.cli.progress import counted_bytes
    from mote.export.bailingmoe import export_gguf
    from mote.export.config import GgufConfig

    config = GgufConfig(experts=experts, shared=shared, attention=attention, head=head, vision=vision)
    with counted_bytes("exporting") as progress:
        done = export_gguf(checkpoint, out, config, force=force, progress=progress)
    emit(asdict(done), as_json=as_json, lines=_lines(done), whole=True)


def _lines(done: "GgufExport") -> Iterator[str]:
    from mote.cli.output import human_bytes

    yield f"{done.path}  {human_bytes(done.nbytes)}"
    yield "  " + ", ".join(f"{part} {' and '.join(types)}" for part, types in done.types.items())
    if done.mmproj is not None:
        yield f"{done.mmproj}  {human_bytes(done.mmproj_nbytes)}"
    for note in [*done.notes, *([done.no_mmproj] if done.no_mmproj else [])]:
        yield f"  note: {note}"


@app.command(epilog="Example: mote export hf runs/small/packed --as qwen2_moe --out runs/small/stock")
def hf(
    checkpoint: Source,
    out: Out,
    as_: Annotated[str, typer.Option("--as", metavar="qwen2_moe", help="Stock architecture.")] = "qwen2_moe",
    dtype: Annotated[str, typer.Option("--dtype", metavar="float32|bfloat16", help="Of all matrices.")] = "float32",
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the text model for plain transformers.

    A stock Qwen2-MoE checkpoint, experts multiplied out: it loads without mote, and takes the room of floats.
    """
    from mote.cli.progress import counted_bytes
    from mote.errors import FormatError
    from mote.export.config import HfConfig
    from mote.export.qwen2_moe import export_qwen2_moe

    if as_ != "qwen2_moe":
        raise FormatError(f"export hf: --as {as_} is unknown; use qwen2_moe")
    settings: Any = {"dtype": dtype}
    with counted_bytes("exporting") as progress:
        export_qwen2_moe(checkpoint, out, HfConfig(**settings), force=force, progress=progress)
    _print(out, as_json=as_json)


def _print(out: Path, *, as_json: bool) -> None:
    from mote.checkpoint.shards import Checkpoint
    from mote.cli.output import emit, human_bytes

    written = Checkpoint.open(out)
    nbytes = sum(info.nbytes for info in written.tensors.values())
    lines = [f"{out}  {human_bytes(nbytes)} in {len(written.tensors)} tensors, Qwen2MoeForCausalLM"]
    emit({"path": str(out), "nbytes": nbytes, "tensors": len(written.tensors)}, as_json=as_json, lines=lines)
