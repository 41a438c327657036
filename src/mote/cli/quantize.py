"""`mote quantize`: post-training quantisation of what is left in high precision, into packed matrices."""

from pathlib import Path
from typing import Annotated

import typer

from mote.cli.options import (
    STORAGE,
    AsJson,
    Attention,
    Debug,
    Experts,
    Force,
    Group,
    Head,
    Out,
    Seed,
    Settings,
    Threads,
    Tower,
)

EXAMPLE = "mote quantize runs/mote --out runs/packed --shared int4 --method gptq --asymmetric --calibration runs/data"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Dense or up-cycled checkpoint.")],
    out: Out,
    shared: Annotated[
        str | None,
        typer.Option("--shared", metavar=STORAGE, help="Shared experts, dense networks [default: int4 of floats]"),
    ] = None,
    attention: Attention = None,
    head: Head = None,
    tower: Tower = None,
    experts: Experts = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="rtn|hqq|gptq|awq", help="How integers are chosen [default: rtn]")
    ] = None,
    group: Group = None,
    asymmetric: Annotated[
        bool | None, typer.Option("--asymmetric/--symmetric", help="A zero point per group, or none [default: none]")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="FILE", help="LLaVA-style file, or a folder that was drawn; gptq, awq."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Conversations to calibrate on [default: 512]")
    ] = None,
    set_: Settings = None,
    seed: Seed = None,
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Quantise after training, by HQQ, GPTQ, AWQ or rounding.

    Packs shared experts, attention, head, vision tower or full-precision experts in 2 to 8 bits, and ternary experts as
    `mote pack` does. gptq and awq look at what each matrix reads while the model goes through conversations with
    pictures; the tower is not theirs, and is rounded to nearest.
    """
    from mote.cli.info import print_summary
    from mote.cli.progress import counted_in_turn
    from mote.cli.settings import resolve
    from mote.compress.quantize import Progress, quantize_checkpoint
    from mote.compress.quantize_config import QuantizeConfig

    storages = {"shared": shared, "attention": attention, "head": head, "tower": tower, "experts": experts}
    symmetric = None if asymmetric is None else not asymmetric
    options = {**storages, "method": method, "group": group, "samples": samples, "symmetric": symmetric}
    given = [f"{name}={str(value).lower()}" for name, value in options.items() if value is not None]
    config = resolve(QuantizeConfig, "quantize", None, [*(set_ or ()), *given], seed)
    with counted_in_turn("looking at pictures", "calibrating", "quantising") as (pictures, layers, written):
        progress = Progress(pictures=pictures, layers=layers, written=written)
        quantize_checkpoint(checkpoint, out, config, calibration=calibration, force=force, progress=progress)
    print_summary(out, as_json=as_json)
