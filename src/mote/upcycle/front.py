"""`mote.upcycle`: one call for a model in memory and for a checkpoint on disk."""

from os import PathLike
from pathlib import Path
from typing import Any

from mote.errors import RecipeError
from mote.upcycle.config import UpcycleConfig, preset


def upcycle(
    model_or_dir: Any,
    out: str | PathLike[str] | None = None,
    config: UpcycleConfig | str = "mote",
    *,
    force: bool = False,
    **changes: Any,
) -> Any:
    """Up-cycles a dense transformers model in place, or a dense checkpoint directory into `out`.

    config: settings, or a preset's name ("mote", "moe-llava"); keyword arguments change single fields of it. Returns
    the model, or the path of the written checkpoint. force: replace an existing `out`. Raises MoteError: unknown
    settings, a model without SwiGLU layers, NaN or Inf weights, `out` in use.

    Example: `mote.upcycle("runs/dense", "runs/upcycled", num_experts=8)`.
    """
    if isinstance(config, str):
        config = preset(config, **changes)
    elif changes:
        raise RecipeError(f"upcycle: give a config or single fields ({', '.join(changes)}), not both")
    if isinstance(model_or_dir, str | PathLike):
        if out is None:
            raise RecipeError(f"upcycle: {model_or_dir} is a directory; name the directory to write as well (out=...)")
        from mote.upcycle.stream import upcycle_checkpoint

        return upcycle_checkpoint(Path(model_or_dir), Path(out), config, force=force).root
    if out is not None:
        raise RecipeError("upcycle: a model in memory changes in place; drop `out` and call save_pretrained afterwards")
    from mote.upcycle.memory import upcycle_model

    return upcycle_model(model_or_dir, config)
