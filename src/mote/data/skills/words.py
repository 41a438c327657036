"""Reading words: one word in one of eight fonts, "What does the text say?", scored by character error rate.

Content key: the text in lower case, so a tested word was never a training word in any font, size or colour.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from typing import ClassVar

from PIL import Image, ImageDraw

from mote.data.skills.concepts import emoji_names
from mote.data.skills.lettering import FONTS, font
from mote.data.skills.picture import PAPERS, SIDE, Picture, Question, dice, digest, split_of
from mote.errors import RecipeError

TEMPLATE = "What does the text say?"
INKS = ((20, 20, 20), (150, 20, 20), (20, 60, 150), (20, 100, 40), (100, 30, 110))
MARGIN = 8


@dataclass(frozen=True, kw_only=True)
class Words:
    """shortest, longest: letters of a word; numbers: share of pictures that show a number of 2 to 4
    digits."""

    shortest: int = 3
    longest: int = 6
    numbers: float = 0.0
    name: ClassVar[str] = "words"
    strata: ClassVar[int] = 1

    def pictures(self, seed: int) -> Iterator[Picture]:
        pool = vocabulary(self.shortest, self.longest)
        if len(pool) < 50:
            raise RecipeError(f"words: only {len(pool)} words have {self.shortest} to {self.longest} letters")
        for index in count():
            roll = dice(seed, self.name, index)
            number = roll.random() < self.numbers
            text = str(roll.randint(10, 9999)) if number else roll.choice(pool)
            spec = (
                text,
                roll.choice(sorted(FONTS)),
                roll.randint(56, 88),
                roll.randrange(len(PAPERS)),
                roll.randrange(len(INKS)),
                round(roll.random(), 2),
                round(roll.random(), 2),
            )
            question = Question(skill=self.name, template=TEMPLATE, text=TEMPLATE, answer=text, metric="one_minus_cer")
            yield Picture(
                stem=f"{self.name}-{digest(spec)[:16]}",
                split=split_of(self.name, text.lower()),
                questions=(question,),
                paint=partial(_paint, *spec),
            )


@lru_cache(maxsize=8)
def vocabulary(shortest: int, longest: int) -> tuple[str, ...]:
    """English words of the emoji names, lower case, a to z only, sorted."""
    found = {word for name in emoji_names() for word in name.replace("-", " ").split()}
    return tuple(sorted(w for w in found if shortest <= len(w) <= longest and w.isascii() and w.isalpha()))


def _paint(text: str, face: str, size: int, paper: int, ink: int, dx: float, dy: float) -> Image.Image:
    canvas = Image.new("RGB", (SIDE, SIDE), PAPERS[paper])
    room = SIDE - 2 * MARGIN
    left, top, right, bottom = font(face, size).getbbox(text)
    if right - left > room:
        size = int(size * room / (right - left))
        left, top, right, bottom = font(face, size).getbbox(text)
    x = MARGIN + dx * (room - (right - left)) - left
    y = MARGIN + dy * (room - (bottom - top)) - top
    ImageDraw.Draw(canvas).text((x, y), text, font=font(face, size), fill=INKS[ink])
    return canvas
