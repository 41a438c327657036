"""Settings of the report."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """title: heading of the page; the recipe's name when empty. attribution: who made the pictures that are shown."""

    title: str = ""
    attribution: str = (
        "Drawings: OpenMoji (openmoji.org), CC BY-SA 4.0. Shapes: easy-VQA (Victor Zhou), MIT. "
        "Chart data: Gapminder (gapminder.org), CC BY."
    )
