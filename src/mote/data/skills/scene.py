"""A grid of drawings: the pictures of counting and spatial, and the questions that both ask about them.

Content key: the multiset of things in the grid (which things and how many of each; place, size and background do not
enter), one key space for both skills. So a set of things that is tested was never seen in training in any arrangement
by either skill. Where the grid holds one kind of thing only, the key is the thing, its number and the background.
"""

import random
from collections import Counter
from dataclasses import dataclass

from PIL import Image

from mote.data.skills.concepts import drawing, plural
from mote.data.skills.picture import PAPERS, SIDE, Question, Split, digest, paste, split_of

CORNERS = ("top left", "top right", "bottom left", "bottom right")
NEIGHBOURS = (("left of", (1, 0)), ("right of", (-1, 0)), ("above", (0, 1)), ("below", (0, -1)))
"""Relation, and the step (columns, rows) from the answer to the thing it is asked about."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """grid: cells along one side; cells: a concept or "" for each, row by row; paper: index of the
    background; jitter: (size 0..1, dx 0..1, dy 0..1) for each cell."""

    grid: int
    cells: tuple[str, ...]
    paper: int
    jitter: tuple[tuple[float, float, float], ...]

    @property
    def stem(self) -> str:
        return f"scene-{digest(self.grid, self.cells, self.paper, self.jitter)[:16]}"

    @property
    def split(self) -> Split:
        things = sorted(Counter(c for c in self.cells if c).items())
        # One kind of thing makes too few multisets to divide: the fours of test would be two or three concepts.
        return split_of("scene", [things, self.paper] if len(things) == 1 else things)

    def paint(self) -> Image.Image:
        """RGB 224 x 224. A drawing fills 62 to 86 % of its cell."""
        canvas = Image.new("RGB", (SIDE, SIDE), PAPERS[self.paper])
        step = SIDE // self.grid
        for place, (concept, (size, dx, dy)) in enumerate(zip(self.cells, self.jitter, strict=True)):
            if concept:
                ink = drawing(concept, round(step * (0.62 + 0.24 * size)))
                left = place % self.grid * step + round(dx * (step - ink.width))
                top = place // self.grid * step + round(dy * (step - ink.height))
                paste(canvas, ink, left, top)
        return canvas


def arrange(roll: random.Random, things: list[str], grid: int) -> Scene:
    """Put the things into random cells of a grid with room for all of them."""
    cells = [*things, *[""] * (grid * grid - len(things))]
    roll.shuffle(cells)
    jitter = tuple((round(roll.random(), 2), round(roll.random(), 2), round(roll.random(), 2)) for _ in cells)
    return Scene(grid=grid, cells=tuple(cells), paper=roll.randrange(len(PAPERS)), jitter=jitter)


def count_question(scene: Scene, concept: str) -> Question:
    """ "How many cats are there?" with a digit as the answer."""
    return Question(
        skill="counting",
        template="How many {things} are there?",
        text=f"How many {plural(concept)} are there?",
        answer=str(scene.cells.count(concept)),
        metric="exact_match",
    )


def corner_questions(scene: Scene) -> list[Question]:
    """ "What is at the top left?" for every filled cell of a 2 x 2 scene; none for other grids."""
    if scene.grid != 2:
        return []
    return [
        Question(
            skill="spatial",
            template="What is at the {corner}?",
            text=f"What is at the {corner}?",
            answer=concept,
            metric="exact_match",
        )
        for corner, concept in zip(CORNERS, scene.cells, strict=True)
        if concept
    ]


def relation_questions(scene: Scene) -> list[Question]:
    """ "What is right of the cat?" wherever the cat is unique and the cell beside it is filled."""
    found = []
    for place, concept in enumerate(scene.cells):
        column, row = place % scene.grid, place // scene.grid
        if not concept or scene.cells.count(concept) != 1:
            continue
        for relation, (dx, dy) in NEIGHBOURS:
            x, y = column - dx, row - dy
            if 0 <= x < scene.grid and 0 <= y < scene.grid and (answer := scene.cells[y * scene.grid + x]):
                found.append(
                    Question(
                        skill="spatial",
                        template=f"What is {relation} the {{thing}}?",
                        text=f"What is {relation} the {concept}?",
                        answer=answer,
                        metric="exact_match",
                    )
                )
    return found


def listing_question(scene: Scene) -> Question:
    """ "List the things." answered row by row: for training only, many grounded words for one picture."""
    return Question(
        skill="spatial",
        template="List the things.",
        text="List the things.",
        answer=", ".join(c for c in scene.cells if c),
        metric="exact_match",
        train_only=True,
    )
