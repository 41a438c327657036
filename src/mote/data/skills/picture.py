"""What a skill yields: a picture to be painted, its questions with exact answers, and the key that decides
its split.

The split is a function of the content key alone, split = h(skill, key), so it does not depend on seed, order
or how many pictures are asked for, and the same content can never be on both sides.
"""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image

Split = Literal["train", "val", "test", "final"]
Metric = Literal["multiple_choice", "exact_match", "one_minus_cer", "relaxed_accuracy"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "final")
EVAL_SPLITS: tuple[Split, ...] = ("val", "test", "final")
SIDE = 224
"""Side of every drawn picture in pixels."""

PAPERS: tuple[tuple[int, int, int], ...] = (
    (255, 255, 255),
    (255, 228, 225),
    (255, 243, 205),
    (220, 245, 220),
    (214, 240, 250),
    (226, 226, 250),
    (240, 230, 220),
    (232, 232, 232),
)
"""Background colours: white and seven pale ones, so that every drawing stands out."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about a picture.

    skill: the skill that the answer counts for; template: the question without what varies, for the blind
    majority baseline; choices: the alternatives of a multiple choice, the answer among them, else empty.
    train_only: never an evaluation question.
    """

    skill: str
    template: str
    text: str
    answer: str
    metric: Metric
    choices: tuple[str, ...] = ()
    train_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that can be painted when it is wanted.

    stem: file name without suffix, a hash of everything that decides the pixels. split: from the content key.
    stratum: every split holds equally many pictures of each stratum of its skill (counting: the number).
    """

    stem: str
    split: Split
    questions: tuple[Question, ...]
    paint: Callable[[], Image.Image]
    stratum: str = ""


def digest(*parts: object) -> str:
    """Hex SHA-256 of the parts' JSON, the same on every machine."""
    return hashlib.sha256(json.dumps(parts, separators=(",", ":"), default=str).encode()).hexdigest()


def split_of(skill: str, key: object) -> Split:
    """train 70 %, val, test and final 10 % each, by the hash of the content key alone."""
    tenth = int(digest("split", skill, key)[:8], 16) % 10
    return "train" if tenth < 7 else SPLITS[tenth - 6]


def dice(*parts: object) -> random.Random:
    """A random generator seeded by the parts: the same picture for the same (seed, skill, index)."""
    return random.Random(int(digest("dice", *parts)[:16], 16))


def paste(canvas: Image.Image, ink: Image.Image, left: int, top: int) -> None:
    """Paste an RGBA drawing through its own transparency, kept inside the canvas."""
    left = max(0, min(left, canvas.width - ink.width))
    top = max(0, min(top, canvas.height - ink.height))
    canvas.paste(ink, (left, top), ink)
