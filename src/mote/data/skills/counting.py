"""Counting: "How many cats are there?" in a grid of cats, other things and empty cells.

Content key: the multiset of things in the grid (see `scene`). The number asked for is uniform over 1..max.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from mote.data.skills.concepts import concepts
from mote.data.skills.picture import Picture, dice
from mote.data.skills.scene import arrange, corner_questions, count_question, listing_question
from mote.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Counting:
    """concepts: nouns in use (None: all); max: largest number asked; grid: cells along a side; others: at
    most this many other things beside the counted ones; listing: whether training also asks to list what is
    there."""

    concepts: int | None = 60
    max: int = 4
    grid: int = 2
    others: int = 3
    listing: bool = False
    name: ClassVar[str] = "counting"

    def __post_init__(self) -> None:
        if not 1 <= self.max <= self.grid * self.grid:
            raise RecipeError(f"counting: max={self.max} does not fit a grid of {self.grid} x {self.grid} cells")

    @property
    def strata(self) -> int:
        return self.max

    def pictures(self, seed: int) -> Iterator[Picture]:
        names = concepts(self.concepts)
        for index in count():
            roll = dice(seed, self.name, index)
            number = 1 + index % self.max
            counted, *rest = roll.sample(names, 1 + self.others)
            room = min(self.others, self.grid * self.grid - number)
            scene = arrange(roll, [counted] * number + rest[: roll.randint(0, room)], self.grid)
            extra = corner_questions(scene)
            roll.shuffle(extra)
            if self.listing:
                extra.append(listing_question(scene))
            yield Picture(
                stem=scene.stem,
                split=scene.split,
                questions=(count_question(scene, counted), *extra),
                paint=scene.paint,
                stratum=str(number),
            )
