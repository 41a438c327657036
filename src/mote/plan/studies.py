"""Accuracies that were measured, beside plans of the same shape and format: `studies/*/report.json`.

A report names no model, but what its dense networks take in BF16 is one number for H F L; with the experts' number and
formats that says which plan was measured. Nothing is interpolated.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mote.checkpoint.accounting import ffn_bytes
from mote.checkpoint.contract import OUTSIDE
from mote.plan.measure import Plan
from mote.plan.skeleton import Skeleton


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
            report["bytes"]["dense_ffn"], report["provenance"]["split"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append((f"{path.parent.name}/{path.name}", report))
    return found


def measured(skeleton: Skeleton, plan: Plan, reports: list[tuple[str, Mapping[str, Any]]]) -> list[Measured]:
    """What the reports say of exactly this plan: the packed model's, or for a dense one in BF16 the dense model's."""
    choice, found = plan.choice, []
    size = ffn_bytes(skeleton.hidden_size, skeleton.ffn_size, skeleton.layers)
    plain = all(getattr(choice, name) == "none" for name in ("shared", *OUTSIDE))
    for source, report in reports:
        mixture = report["provenance"]["mixture"]
        if report["bytes"]["dense_ffn"] != size or not plain:
            continue
        if choice.kind == "dense":
            series = "dense"
        elif (
            choice.kind == "mote"
            and choice.experts_format == "ternary"
            and mixture["num_experts"] == choice.experts
            and mixture.get("codec") == choice.codec
            and mixture.get("shared", {}).get("quantizer", "none") == "none"
        ):
            series = "packed"
        else:
            continue
        score = report["accuracy"][series]["average"]
        values = {key: score[key] for key in ("value", "low", "high", "n")}
        found.append(Measured(**values, split=report["provenance"]["split"], source=source))
    return found
