"""Attributes: shape and colour of one figure, the wh-questions of easy-VQA (yes/no ones would need no
picture).

Content key: the pixels of the picture. easy-VQA's own test pictures become test and final, its training
pictures train and val; a training picture whose pixels also occur among the test pictures is left out.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar

from PIL import Image

from mote.data.skills.picture import SIDE, Picture, Question, Split, dice, digest
from mote.data.sources import read_member
from mote.errors import DataError

COLOURS = ("black", "gray", "teal", "brown", "green", "blue", "red", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
FOLDER = "easy_vqa/data"


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """No settings: easy-VQA is taken as it is."""

    name: ClassVar[str] = "attributes"
    strata: ClassVar[int] = 1

    def pictures(self, seed: int) -> Iterator[Picture]:
        """About 3,800 pictures of train and val and 990 of test and final, in an order that the seed
        decides."""
        table = _table()
        order = list(table)
        dice(seed, self.name).shuffle(order)
        for part, number in order:
            split, asked = table[part, number]
            questions = [_question(text, answer) for text, answer in asked]
            dice(seed, self.name, part, number).shuffle(questions)
            if split == "train":
                # "What color is the triangle?" gives the shape away: questions that do not come first.
                questions.sort(key=lambda q: "{" in q.template)
            yield Picture(
                stem=f"{self.name}-{part}-{number}",
                split=split,
                questions=tuple(questions),
                paint=partial(_paint, part, number),
            )


def _question(text: str, answer: str) -> Question:
    template = text
    for words, name in ((COLOURS, "{color}"), (SHAPES, "{shape}")):
        for word in words:
            template = template.replace(f" {word}", f" {name}")
    return Question(
        skill="attributes",
        template=template.capitalize(),
        text=text.capitalize(),
        answer=answer,
        metric="exact_match",
    )


@lru_cache(maxsize=1)
def _table() -> dict[tuple[str, int], tuple[Split, list[tuple[str, str]]]]:
    """(part, number of the picture) -> its split and its wh-questions."""
    table: dict[tuple[str, int], tuple[Split, list[tuple[str, str]]]] = {}
    seen: set[str] = set()
    for part in ("test", "train"):
        keys: dict[int, str] = {}
        for text, answer, number in json.loads(read_member("easy-vqa", f"{FOLDER}/{part}/questions.json")):
            if answer in ("yes", "no"):
                continue
            if number not in keys:
                keys[number] = hashlib.sha256(_pixels(part, number).tobytes()).hexdigest()
            if part == "train" and keys[number] in seen:
                continue
            table.setdefault((part, number), (_split(part, keys[number]), []))[1].append((text, answer))
        seen.update(keys.values())
    return table


def _split(part: str, pixels: str) -> Split:
    """easy-VQA fixes the side, the hash of the pixels decides within it: halves of test, an eighth of train."""
    bucket = int(digest("attributes", pixels)[:8], 16)
    if part == "test":
        return "test" if bucket % 2 else "final"
    return "train" if bucket % 8 else "val"


def _pixels(part: str, number: int) -> Image.Image:
    data = read_member("easy-vqa", f"{FOLDER}/{part}/images/{number}.png")
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except OSError as error:
        raise DataError(f"easy-vqa: {part}/{number}.png cannot be read: {error}") from None


def _paint(part: str, number: int) -> Image.Image:
    return _pixels(part, number).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
