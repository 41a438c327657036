"""How an answer is scored against the expected one: a number from 0 to 1 for each question.

exact_match        1 if the two texts are the same after `normalize`
multiple_choice    1 if the likeliest of the offered choices is the expected one (see `mote.evaluate.scoring`)
relaxed_accuracy   numbers: 1 within 5% of the expected value (ChartQA's rule); other answers as exact_match
one_minus_cer      max(0, 1 - edits / length): Levenshtein distance in characters over the expected length, averaged
                   over questions (not pooled), so that every question weighs the same
"""

import re
import unicodedata

from mote.data.conversation import METRICS
from mote.errors import DataError

RELATIVE_TOLERANCE = 0.05

_NUMBER = re.compile(r"^[-+]?(\d[\d,]*\.?\d*|\.\d+)([eE][-+]?\d+)?\s*%?$")


def normalize(text: str) -> str:
    """Unicode NFKC, lower case, single spaces, no white space or full stop at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".").strip()


def exact_match(given: str, expected: str) -> float:
    """1.0 if the normalised texts are equal, else 0.0."""
    return float(normalize(given) == normalize(expected))


def as_number(text: str) -> float | None:
    """The number that `text` is ("1,234.5", "-3", "40%"), or None if it is something else."""
    text = normalize(text)
    return float(text.rstrip("% ").replace(",", "")) if _NUMBER.match(text) else None


def relaxed_match(given: str, expected: str) -> float:
    """1.0 if both are numbers and differ by at most 5% of the expected one, or if the texts are equal."""
    target, value = as_number(expected), as_number(given)
    if target is None or value is None:
        return exact_match(given, expected)
    return float(abs(value - target) <= RELATIVE_TOLERANCE * abs(target))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: fewest insertions, deletions and substitutions of characters."""
    previous = list(range(len(b) + 1))
    for i, char_a in enumerate(a, 1):
        current = [i]
        for j, char_b in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (char_a != char_b)))
        previous = current
    return previous[-1]


def one_minus_cer(given: str, expected: str) -> float:
    """max(0, 1 - edit distance / length of the expected text), both normalised."""
    given, expected = normalize(given), normalize(expected)
    return max(0.0, 1.0 - edit_distance(given, expected) / max(1, len(expected)))


def score(metric: str, given: str, expected: str) -> float:
    """The score of one answer in text. Raises DataError for a metric that does not exist."""
    if metric in ("exact_match", "multiple_choice"):
        return exact_match(given, expected)
    if metric == "relaxed_accuracy":
        return relaxed_match(given, expected)
    if metric == "one_minus_cer":
        return one_minus_cer(given, expected)
    raise DataError(f"metric {metric!r} is unknown; use one of {', '.join(METRICS)}")
