from collections import Counter

import pytest

from mote.data.skills.concepts import SMALL, concepts, drawing, plural
from mote.errors import DataError, RecipeError


def test_the_small_set_is_the_beginning_of_the_full_one() -> None:
    assert concepts(60) == tuple(SMALL.split()) == concepts()[:60]
    assert len(set(concepts())) == len(concepts())


def test_too_many_concepts_are_an_error() -> None:
    with pytest.raises(RecipeError, match="between 8 and"):
        concepts(10_000)


def test_plurals() -> None:
    names = ("cat", "fox", "fish", "butterfly", "key", "mouse", "torch", "bus", "wolf", "tomato")
    plurals = ["cats", "foxes", "fish", "butterflies", "keys", "mice", "torches", "buses", "wolves", "tomatoes"]

    assert [plural(name) for name in names] == plurals


@pytest.mark.usefixtures("small_wheels")
def test_a_drawing_is_cropped_and_scaled() -> None:
    assert max(drawing("anchor", 64).size) == 64
    with pytest.raises(DataError, match="no drawing is called 'anchr'"):
        drawing("anchr", 64)


@pytest.mark.slow
def test_every_concept_has_a_drawing_of_its_own() -> None:
    drawn = Counter(drawing(name, 64).tobytes() for name in concepts())

    assert len(drawn) == len(concepts())
