"""Accuracies that were measured, beside plans of the same shape and formats: `studies/*/report.json`.

A file is the report of a pipeline (a packed model and the dense one behind it) or of `benchmarks/budget.py` (`rows`,
each with its `choice`). Neither names a model, but one of its checkpoints has a size, eyes included: a plan was
measured where that checkpoint would have this size of the planned model too, and the choice is the same. Nothing is
interpolated.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mote.errors import MoteError
from mote.plan.choice import CODECS, Choice
from mote.plan.measure import Plan, Use, count
from mote.plan.skeleton import Skeleton

TOLERANCE = 0.01
"""Of a file's size: pictures of other sides change a tower's table of positions."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """value, low, high: average accuracy from 0 to 1, with its interval of 95%. n: questions. method: that chose the
    integers, "" where there are none. source: the report."""

    value: float
    low: float
    high: float
    n: int
    split: str
    method: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """checkpoint, file_bytes: one of its checkpoints, by whose size its model is known. accuracies: what was found of
    each choice."""

    checkpoint: Choice
    file_bytes: int
    accuracies: tuple[tuple[Choice, Measured], ...]


def read_studies(folder: Path) -> list[Study]:
    """Every report.json below `folder` of models that a plan can describe; other files are passed over."""
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
    if "rows" in report:
        settings = report["settings"]
        return Study(
            checkpoint=Choice(),
            file_bytes=int(settings["packed_bytes"]),
            accuracies=tuple(
                (Choice(**row["choice"]), _measured(row["average"], settings["split"], row["method"], source))
                for row in report["rows"]
            ),
        )
    mixture, split = report["provenance"]["mixture"], str(report["provenance"]["split"])
    if mixture.get("shared", {}).get("quantizer", "none") != "none" or mixture.get("codec") not in CODECS:
        return None
    packed = Choice(experts=int(mixture["num_experts"]), codec=mixture["codec"])
    choices = {"packed": packed, "dense": Choice(kind="dense", experts=0)}
    return Study(
        checkpoint=packed,
        file_bytes=int(report["bytes"]["checkpoint"]),
        accuracies=tuple(
            (choice, _measured(report["accuracy"][series]["average"], split, "none", source))
            for series, choice in choices.items()
        ),
    )


def _measured(average: Mapping[str, Any], split: str, method: str, source: str) -> Measured:
    value, low, high = (float(average[key]) for key in ("value", "low", "high"))
    named = "" if method == "none" else method
    return Measured(value=value, low=low, high=high, n=int(average["n"]), split=split, method=named, source=source)


def measured(skeleton: Skeleton, plan: Plan, studies: Sequence[Study]) -> list[Measured]:
    """What the studies say of exactly this plan."""
    choice, found = _essential(plan.choice), []
    for study in studies:
        size = count(skeleton, study.checkpoint, "file", Use())
        if abs(size - study.file_bytes) <= TOLERANCE * size:
            found += [accuracy for other, accuracy in study.accuracies if _essential(other) == choice]
    return found


def _essential(choice: Choice) -> Choice:
    """Without the settings that nothing in it is stored by."""
    if choice.kind == "dense":
        choice = replace(choice, experts_format="ternary")
    if choice.kind == "dense" or choice.experts_format != "ternary":
        choice = replace(choice, codec="base3")
    return choice if choice.has_integers else replace(choice, group=64, symmetric=True)
