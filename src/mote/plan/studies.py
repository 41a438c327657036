"""Accuracies that were measured, beside plans of the same shape and format: `studies/*/report.json`.

A report names no model, but its checkpoint has a size: a plan was measured where the same number of experts in the same
formats, in all layers, makes a file of that size, eyes included. Nothing is interpolated.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mote.checkpoint.contract import OUTSIDE
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


def read_studies(folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, report) of every readable report.json below `folder`; a file that is no report is passed over."""
    found = []
    for path in sorted(folder.glob("*/report.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            report["accuracy"]["packed"]["average"]["value"], report["provenance"]["mixture"]["num_experts"]
            report["bytes"]["checkpoint"], report["provenance"]["split"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append((f"{path.parent.name}/{path.name}", report))
    return found


def measured(skeleton: Skeleton, plan: Plan, reports: list[tuple[str, Mapping[str, Any]]]) -> list[Measured]:
    """What the reports say of exactly this plan: the packed model's, or for a dense one in BF16 the dense model's."""
    choice, found = plan.choice, []
    if choice.layers or any(getattr(choice, name) != "none" for name in ("shared", *OUTSIDE)):
        return []
    for source, report in reports:
        mixture = report["provenance"]["mixture"]
        if mixture.get("shared", {}).get("quantizer", "none") != "none" or mixture.get("codec") not in CODECS:
            continue
        packed = Choice(experts=mixture["num_experts"], codec=mixture["codec"])
        size = count(skeleton, packed, "file", Use())
        if abs(size - report["bytes"]["checkpoint"]) > TOLERANCE * size:
            continue
        if choice.kind == "dense":
            series = "dense"
        elif replace(choice, group=packed.group, symmetric=packed.symmetric) == packed:
            series = "packed"
        else:
            continue
        score = report["accuracy"][series]["average"]
        values = {key: score[key] for key in ("value", "low", "high", "n")}
        found.append(Measured(**values, split=report["provenance"]["split"], source=source))
    return found
