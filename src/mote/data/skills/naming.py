"""Naming: one drawing on a plain ground, "What is in the picture?", four choices.

Content key: (concept, cell of a 3 x 3 placement grid, size class, background). Concepts are shared by all
splits; the combination of concept, place, size and background is what is held out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import ClassVar

from PIL import Image

from mote.data.skills.concepts import concepts, drawing
from mote.data.skills.picture import PAPERS, SIDE, Picture, Question, dice, digest, paste, split_of

TEMPLATE = "What is in the picture?"
SIZES = (110, 135, 160, 185)
"""Longer side of the drawing in pixels, one per size class; up to 8 pixels are added at random."""


@dataclass(frozen=True, kw_only=True)
class Naming:
    """concepts: how many of the stated nouns are used (None: all); choices: alternatives of an evaluation
    question."""

    concepts: int | None = 60
    choices: int = 4
    name: ClassVar[str] = "naming"
    strata: ClassVar[int] = 1

    def pictures(self, seed: int) -> Iterator[Picture]:
        """Endless pictures, concept after concept, so that every concept is equally frequent."""
        names = concepts(self.concepts)
        order = list(names)
        for index in count():
            roll = dice(seed, self.name, index)
            if index % len(order) == 0:
                dice(seed, self.name, "order", index).shuffle(order)
            concept = order[index % len(order)]
            key = (concept, roll.randrange(9), roll.randrange(len(SIZES)), roll.randrange(len(PAPERS)))
            spec = (*key, roll.randrange(9), roll.randrange(-8, 9), roll.randrange(-8, 9))
            others = roll.sample([n for n in names if n != concept], self.choices - 1)
            options = [concept, *others]
            roll.shuffle(options)
            question = Question(
                skill=self.name,
                template=TEMPLATE,
                text=TEMPLATE,
                answer=concept,
                metric="multiple_choice",
                choices=tuple(options),
            )
            yield Picture(
                stem=f"{self.name}-{digest(spec)[:16]}",
                split=split_of(self.name, key),
                questions=(question,),
                paint=partial(_paint, *spec),
            )


def _paint(concept: str, cell: int, size: int, paper: int, extra: int, dx: int, dy: int) -> Image.Image:
    canvas = Image.new("RGB", (SIDE, SIDE), PAPERS[paper])
    ink = drawing(concept, SIZES[size] + extra)
    left = (SIDE - ink.width) * (cell % 3) // 2 + dx
    top = (SIDE - ink.height) * (cell // 3) // 2 + dy
    paste(canvas, ink, left, top)
    return canvas
