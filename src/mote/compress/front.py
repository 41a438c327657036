"""`mote.pack`: one call for a model in memory and for a checkpoint on disk; `mote.quantize`, on disk."""

from os import PathLike
from pathlib import Path
from typing import Any

from mote.checkpoint.contract import CodecName
from mote.compress.config import PackConfig
from mote.errors import RecipeError
from mote.ternary.format import Storage


def pack(
    model_or_dir: Any,
    out: str | PathLike[str] | None = None,
    *,
    codec: CodecName = "base3",
    shared: Storage = "none",
    attention: Storage = "none",
    head: Storage = "none",
    tower: Storage = "none",
    experts: Storage = "none",
    group: int = 64,
    symmetric: bool = True,
    force: bool = False,
) -> Any:
    """Packs an up-cycled transformers model in place, or an up-cycled checkpoint directory into `out`.

    codec: of ternary experts. The others: as in `PackConfig`; with shared, attention, head or tower a dense model can
    be packed as well. Returns the model, or the path of the written checkpoint. force: replace an existing `out`.
    Raises MoteError: not up-cycled, NaN or Inf weights, a grid that no codec holds, `out` in use.

    Example: `mote.pack("runs/mote", "runs/packed", shared="int4", attention="int8", head="int4")`.
    """
    config = PackConfig(
        codec=codec,
        shared=shared,
        attention=attention,
        head=head,
        tower=tower,
        experts=experts,
        group=group,
        symmetric=symmetric,
    )
    if isinstance(model_or_dir, str | PathLike):
        if out is None:
            raise RecipeError(f"pack: {model_or_dir} is a directory; name the directory to write as well (out=...)")
        from mote.compress.stream import pack_checkpoint

        return pack_checkpoint(Path(model_or_dir), Path(out), config, force=force).root
    if out is not None:
        raise RecipeError("pack: a model in memory changes in place; drop `out` and call save_pretrained afterwards")
    from mote.compress.memory import pack_model

    return pack_model(model_or_dir, config)


def quantize(
    checkpoint: str | PathLike[str],
    out: str | PathLike[str],
    *,
    calibration: str | PathLike[str] | None = None,
    force: bool = False,
    **settings: Any,
) -> Path:
    """Quantises a dense or up-cycled checkpoint directory into the packed `out`, and returns its path.

    settings: fields of `QuantizeConfig`, such as method and shared. calibration: LLaVA-style file, or a folder with
    `train.jsonl`, for the methods "gptq" and "awq". force: replace an existing `out`. Raises MoteError: unknown
    settings, no calibration data, a library that is missing, and what `pack` raises.

    Example: `mote.quantize("runs/mote", "runs/packed", method="gptq", calibration="runs/data", shared="int4")`.
    """
    from mote.compress.quantize import quantize_checkpoint
    from mote.compress.quantize_config import QuantizeConfig
    from mote.recipe import from_plain

    config = from_plain(QuantizeConfig, settings, "quantize")
    data = None if calibration is None else Path(calibration)
    return quantize_checkpoint(Path(checkpoint), Path(out), config, calibration=data, force=force).root
