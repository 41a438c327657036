"""The tables of known models, vision towers and devices: YAML files in `data/`, where another one is a row."""

import difflib
import functools
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from mote.errors import PlanError

TOP_KEYS = ("image_size", "downsample_factor", "alignment_intermediate_size")
"""Of a tower's row, what stands at the top of a config."""


@functools.cache
def table(name: str) -> dict[str, dict[str, Any]]:
    """The rows of `data/<name>.yaml` by name: "models", "towers" or "devices"."""
    import yaml

    text = (files("mote.plan") / "data" / f"{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def model_config(name: str, vision: str | None = None) -> dict[str, Any]:
    """The config.json, as far as sizes need it, of a known language model with a known tower.

    vision: a tower's name, "none" for the language model alone, None for the default of the row. Raises PlanError,
    which suggests names, for one that is not in the table.
    """
    text = dict(row("models", name, "model", "or give the path of a config.json or a checkpoint"))
    default = text.pop("vision", "none")
    return joined(text, vision or default)


def joined(text: dict[str, Any], vision: str) -> dict[str, Any]:
    """The config of a language model and a known tower; vision "none" gives the language model's own."""
    if vision == "none":
        return text
    tower = row("towers", vision, "vision tower", "or say none")
    kind = tower["connector"]
    class_token = tower["vision_config"]["model_type"] != "siglip_vision_model"
    return {
        "model_type": kind,
        "text_config": text,
        "vision_config": tower["vision_config"],
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
        "vision_feature_select_strategy": "default" if class_token else "full",
        "vision_feature_layer": -2 if kind == "llava" else -1,
        **{key: tower[key] for key in TOP_KEYS if key in tower},
    }


def row(kind: str, name: str, what: str, advice: str) -> dict[str, Any]:
    """The row `name` of a table. Raises PlanError with the nearest names."""
    rows = table(kind)
    if name in rows:
        return rows[name]
    raise PlanError(f"{what} {name!r} is unknown; {suggestion(name, rows)}, {advice}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """ "did you mean X or Y?", or all that there are."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
