"""Scores of answers in text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mote.errors import DataError
from mote.evaluate.metrics import (
    as_number,
    edit_distance,
    exact_match,
    normalize,
    one_minus_cer,
    relaxed_match,
    score,
)

WORDS = st.text("abc ", max_size=8)


def test_normalize_forgives_case_space_and_full_stop_only() -> None:
    assert normalize("  A  Red\tcar. ") == "a red car"
    assert exact_match("Teal.", "teal") == 1.0
    assert exact_match("teals", "teal") == 0.0
    assert exact_match("\uff13", "3") == 1.0


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12.0), ("1,234.5", 1234.5), ("-3.", -3.0), ("40 %", 40.0), (".5", 0.5), ("1e3", 1000.0),
     ("", None), ("12 cars", None), ("nan", None), ("1.2.3", None), ("-", None)],
)  # fmt: skip
def test_as_number(text: str, number: float | None) -> None:
    assert as_number(text) == number


def test_relaxed_match_allows_five_percent() -> None:
    assert relaxed_match("105", "100") == 1.0
    assert relaxed_match("94.9", "100") == 0.0
    assert relaxed_match("-10.4", "-10") == 1.0
    assert relaxed_match("0.01", "0") == 0.0
    assert relaxed_match("Norway", "norway") == 1.0
    assert relaxed_match("about 100", "100") == 0.0


@given(WORDS, WORDS, WORDS)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, a) == 0
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_one_minus_cer() -> None:
    assert one_minus_cer("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert one_minus_cer("a very long wrong answer", "x") == 0.0
    assert one_minus_cer("Cat.", "cat") == 1.0


def test_score_dispatches_and_refuses_the_unknown() -> None:
    assert score("relaxed_accuracy", "1.04", "1") == 1.0
    assert score("one_minus_cer", "ab", "abcd") == 0.5
    assert score("multiple_choice", "b", "b") == 1.0
    with pytest.raises(DataError, match="metric 'bleu' is unknown"):
        score("bleu", "a", "a")
