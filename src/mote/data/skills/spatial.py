"""Spatial relations: four different things in a 2 x 2 grid, "What is at the top left?", "What is below the
cat?".

Content key: the set of things in the picture (see `scene`), whatever their arrangement.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from mote.data.skills.concepts import concepts
from mote.data.skills.picture import Picture, dice
from mote.data.skills.scene import arrange, corner_questions, listing_question, relation_questions


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """concepts: nouns in use (None: all); relations: whether relations are asked besides corners; listing:
    whether training also asks to list what is there."""

    concepts: int | None = 60
    relations: bool = True
    listing: bool = False
    name: ClassVar[str] = "spatial"
    strata: ClassVar[int] = 1

    def pictures(self, seed: int) -> Iterator[Picture]:
        names = concepts(self.concepts)
        for index in count():
            roll = dice(seed, self.name, index)
            scene = arrange(roll, roll.sample(names, 4), 2)
            corners = corner_questions(scene)
            relations = relation_questions(scene) if self.relations else []
            roll.shuffle(corners)
            roll.shuffle(relations)
            # Alternate the two kinds, each first in half of the pictures.
            pools = [corners, relations][:: 1 if index % 2 else -1]
            questions = [pool[k] for k in range(4) for pool in pools if k < len(pool)]
            if self.listing:
                questions.append(listing_question(scene))
            yield Picture(stem=scene.stem, split=scene.split, questions=tuple(questions), paint=scene.paint)
