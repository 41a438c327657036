import pytest

from mote.data.text import english_text


@pytest.mark.slow
def test_the_text_is_english_prose_and_long_enough() -> None:
    text = english_text()

    assert len(text) > 40_000
    assert text.count(" the ") > 300
    assert english_text(max_characters=100) == text[:100]
