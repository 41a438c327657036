"""Reading bar charts of real tables: fertility, life expectancy and population of countries (gapminder).

Content key: the set of countries in the chart, whatever the year and the measure. A single country's figure
can be seen in training beside other countries; the set that is compared cannot.
"""

import colorsys
import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count, pairwise
from typing import ClassVar

from PIL import Image, ImageDraw

from mote.data.skills.lettering import font
from mote.data.skills.picture import SIDE, Picture, Question, dice, digest, split_of
from mote.data.sources import read_member
from mote.errors import RecipeError

TABLE = "bokeh_sampledata/_data/gapminder.csv.gz"
MEASURES = {"fertility": 1.0, "life_expectancy": 1.0, "population": 1e-6}
"""Columns of the table and the factor from its unit to what is printed (population in millions)."""
LONGEST_NAME = 9
LEAST_GAP = 0.06
"""Two bars differ by at least this share of the longest one, so that the order can be seen."""

Row = tuple[str, float]


@dataclass(frozen=True, kw_only=True)
class Charts:
    """fewest, most: number of bars."""

    fewest: int = 3
    most: int = 4
    name: ClassVar[str] = "charts"
    strata: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 2 <= self.fewest <= self.most <= 6:
            raise RecipeError(f"charts: fewest={self.fewest}, most={self.most}; choose 2 <= fewest <= most <= 6")

    def pictures(self, seed: int) -> Iterator[Picture]:
        for index in count():
            roll = dice(seed, self.name, index)
            measure = roll.choice(sorted(MEASURES))
            table = _rows(measure)[roll.choice(sorted(_rows(measure)))]
            rows = roll.sample(table, roll.randint(self.fewest, self.most))
            values = sorted(value for _, value in rows)
            if min(b - a for a, b in pairwise(values)) < LEAST_GAP * values[-1]:
                continue
            if values[-1] >= 1000:
                continue
            spec = (tuple(rows), round(roll.random(), 2))
            questions = [*_extremes(rows), *_values(rows)]
            roll.shuffle(questions)
            yield Picture(
                stem=f"{self.name}-{digest(spec)[:16]}",
                split=split_of(self.name, sorted(name for name, _ in rows)),
                questions=tuple(questions),
                paint=partial(_paint, *spec),
            )


def _extremes(rows: list[Row]) -> list[Question]:
    ordered = sorted(rows, key=lambda row: row[1])
    return [
        Question(
            skill="charts",
            template=f"Which country has the {word} bar?",
            text=f"Which country has the {word} bar?",
            answer=ordered[place][0],
            metric="exact_match",
            choices=tuple(name for name, _ in rows),
        )
        for word, place in (("longest", -1), ("shortest", 0))
    ]


def _values(rows: list[Row]) -> list[Question]:
    return [
        Question(
            skill="charts",
            template="What is the value of {country}?",
            text=f"What is the value of {name}?",
            answer=_print(value),
            metric="relaxed_accuracy",
        )
        for name, value in rows
    ]


def _print(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


@lru_cache(maxsize=4)
def _rows(measure: str) -> dict[str, list[Row]]:
    """year -> (country, value in the printed unit) of countries with short names."""
    text = gzip.decompress(read_member("bokeh-sampledata", TABLE)).decode("utf-8")
    years: dict[str, list[Row]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        if row[measure] and len(row["country"]) <= LONGEST_NAME and row["country"].isascii():
            value = float(row[measure]) * MEASURES[measure]
            if value >= 0.1:
                years.setdefault(row["year"], []).append((row["country"], float(_print(value))))
    return {year: rows for year, rows in years.items() if len(rows) >= 20}


def _paint(rows: tuple[Row, ...], hue: float) -> Image.Image:
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(canvas)
    step = SIDE // len(rows)
    size = min(26, int(step * 0.45))
    longest = max(value for _, value in rows)
    for place, (name, value) in enumerate(rows):
        top = place * step
        shade = colorsys.hsv_to_rgb((hue + place / len(rows)) % 1, 0.7, 0.8)
        end = 4 + 150 * value / longest
        pen.text((4, top + step * 0.02), name, font=font("sans-semibold", size), fill="black")
        pen.rectangle((4, top + step * 0.56, end, top + step * 0.92), fill=tuple(int(255 * c) for c in shade))
        label = _print(value)
        pen.text((end + 5, top + step * 0.46), label, font=font("sans-semibold", size), fill="black")
    return canvas
