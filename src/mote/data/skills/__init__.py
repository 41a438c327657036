"""The skills of the drawn mix, one file each. Adding one: a file with a class like these, and a line in
`SKILLS`."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from mote.data.skills.attributes import Attributes
from mote.data.skills.charts import Charts
from mote.data.skills.counting import Counting
from mote.data.skills.naming import Naming
from mote.data.skills.picture import Picture
from mote.data.skills.spatial import Spatial
from mote.data.skills.words import Words
from mote.errors import RecipeError
from mote.recipe import from_plain


class Skill(Protocol):
    """A frozen dataclass whose fields are the skill's settings in a recipe.

    strata: number of kinds of picture that every split holds in equal numbers (`Picture.stratum`).
    """

    @property
    def name(self) -> str: ...

    @property
    def strata(self) -> int: ...

    def pictures(self, seed: int) -> Iterator[Picture]:
        """Pictures in an order that the seed decides; a picture's split is decided by its content alone."""
        ...


SKILLS: dict[str, type] = {s.name: s for s in (Naming, Attributes, Counting, Spatial, Words, Charts)}


def make_skill(name: str, options: Mapping[str, object] | None = None) -> Skill:
    """A skill with its settings. RecipeError on an unknown skill or setting, or a value of the wrong type."""
    if name not in SKILLS:
        raise RecipeError(f"skill {name!r} is unknown; choose from {', '.join(SKILLS)}")
    skill: Skill = from_plain(SKILLS[name], options, f"data.skills.{name}.options")
    return skill
