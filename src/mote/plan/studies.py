"""Accuracies that were measured, beside plans of the same shape and format: `studies/*/report.json`.

A report names no model, but its checkpoint has a size: a plan was measured where the same number of experts in the same
formats, in all layers, makes a file of that size, eyes included. Nothing is interpolated.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mote.checkpoint.contract import OUTSIDE
from mote.errors import MoteError
from mote.plan.choice import CODECS, Choice
from mote.plan.measure import Plan, Use, count
from mote.plan.skeleton import Skeleton

TOLERANCE = 0.01
"""Of a file's size: pictures of other sides change a tower's table of positions."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """value, low, high: average accuracy from 0 to 1, with its interval of 95%. n: questions. source: the report."""

    value: float
    low: float
    high: float
    n: int
    split: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """packed: what was measured. file_bytes: of its checkpoint. accuracy: of it and of the dense model behind it."""

    packed: Choice
    file_bytes: int
    accuracy: Mapping[str, Measured]


def read_studies(folder: Path) -> list[Study]:
    """Every report.json below `folder` of a packed model that a plan can describe; other files are passed over."""
    found = []
    for path in sorted(folder.glob("*/report.json")):
        try:
            study = _study(json.loads(path.read_text(encoding="utf-8")), f"{path.parent.name}/{path.name}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, MoteError):
            continue
        if study is not None:
            found.append(study)
    return found


def _study(report: Mapping[str, Any], source: str) -> Study | None:
    mixture, split = report["provenance"]["mixture"], str(report["provenance"]["split"])
    if mixture.get("shared", {}).get("quantizer", "none") != "none" or mixture.get("codec") not in CODECS:
        return None
    accuracy = {}
    for series in ("dense", "packed"):
        score = report["accuracy"][series]["average"]
        value, low, high = (float(score[key]) for key in ("value", "low", "high"))
        accuracy[series] = Measured(value=value, low=low, high=high, n=int(score["n"]), split=split, source=source)
    packed = Choice(experts=int(mixture["num_experts"]), codec=mixture["codec"])
    return Study(packed=packed, file_bytes=int(report["bytes"]["checkpoint"]), accuracy=accuracy)


def measured(skeleton: Skeleton, plan: Plan, studies: Sequence[Study]) -> list[Measured]:
    """What the studies say of exactly this plan: the packed model's, or for a dense one in BF16 the dense model's."""
    choice, found = plan.choice, []
    if choice.layers or any(getattr(choice, name) != "none" for name in ("shared", *OUTSIDE)):
        return []
    for study in studies:
        packed = study.packed
        alike = replace(choice, group=packed.group, symmetric=packed.symmetric) == packed
        if choice.kind != "dense" and not alike:
            continue
        size = count(skeleton, packed, "file", Use())
        if abs(size - study.file_bytes) <= TOLERANCE * size:
            found.append(study.accuracy["dense" if choice.kind == "dense" else "packed"])
    return found
