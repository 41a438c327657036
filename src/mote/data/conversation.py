"""Conversations in LLaVA's format, from JSON or JSONL.

{"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from":
"gpt", "value": "A cat."}]}

Rows without a picture leave `image` out. A row of an evaluation file may carry `skill`, `metric`, `choices`
and `template` beside it. The placeholder stands for the row's one picture, which always comes first, wherever
it was written in the first question; without it the picture comes first too.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mote.errors import DataError

PLACEHOLDER = "<image>"
METRICS = ("exact_match", "multiple_choice", "relaxed_accuracy", "one_minus_cer")
"""Names of the scores that a row may ask for; `exact_match` where it does not say."""
HUMAN, MODEL = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question and its answer, without placeholder and without space around. skill: "" if the row does not
    say."""

    question: str
    answer: str
    skill: str = ""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One row. `where` is "FILE:LINE" for error messages; skill to template are those of an evaluation
    row."""

    id: str
    image: Path | None
    turns: tuple[Turn, ...]
    where: str = ""
    skill: str = ""
    metric: str = "exact_match"
    choices: tuple[str, ...] = ()
    template: str = ""

    @property
    def answer(self) -> str:
        """The last answer: the one that an evaluation asks for."""
        return self.turns[-1].answer

    def first(self, turns: int) -> "Conversation":
        """The same conversation cut after its first `turns` turns."""
        return replace(self, turns=self.turns[:turns])

    def with_answer(self, answer: str) -> "Conversation":
        """The same conversation with another last answer, such as one alternative of a multiple choice."""
        return replace(self, turns=(*self.turns[:-1], replace(self.turns[-1], answer=answer)))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A raw row and the line where it begins, or what is wrong with that line."""

    line: int
    value: Any = None
    problem: str = ""


def read_conversations(path: Path | str, *, image_root: Path | str | None = None) -> list[Conversation]:
    """All rows of a LLaVA JSON or JSONL file; relative pictures lie below `image_root`, else beside the file.

    Pictures are not opened. Raises DataError with file and line of the first bad row, and how many more there
    are.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path.parent
    conversations: list[Conversation] = []
    problems: list[str] = []
    for row in iterate_rows(path):
        where = f"{path}:{row.line}"
        found = [row.problem] if row.problem else problems_of(row.value)
        if found:
            problems += [f"{where}: {problem}" for problem in found]
        else:
            conversations.append(_convert(row.value, root, where))
    if problems:
        more = f" (and {len(problems) - 1} more: mote data validate {path})" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
    if not conversations:
        raise DataError(f"{path}: holds no conversation")
    return conversations


def iterate_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSON array (first character "[") or of JSON lines, in order. DataError if there is no such
    file."""
    try:
        with path.open(encoding="utf-8") as stream:
            first = stream.read(1)
            while first and (first.isspace() or first == "\ufeff"):
                first = stream.read(1)
            stream.seek(0)
            if first == "[":
                yield from _array(stream.read().removeprefix("\ufeff"))
                return
            for number, line in enumerate(stream, start=1):
                if text := line.strip().removeprefix("\ufeff"):
                    yield _parsed(text, number)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}; convert it to UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _parsed(text: str, line: int) -> Row:
    try:
        return Row(line=line, value=json.loads(text))
    except (ValueError, RecursionError) as error:
        return Row(line=line, problem=f"not JSON: {_first(error)}")


def _array(text: str) -> Iterator[Row]:
    """Elements of a JSON array one by one, so that each knows its line; nothing after a syntax error is
    read."""
    decoder = json.JSONDecoder()
    place, line, counted = text.index("[") + 1, 1, 0
    while True:
        while place < len(text) and (text[place].isspace() or text[place] == ","):
            place += 1
        line += text.count("\n", counted, place)
        counted = place
        if place >= len(text):
            yield Row(line=line, problem="not JSON: the array is not closed; the file may be truncated")
            return
        if text[place] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            yield Row(line=line, problem=f"not JSON: {_first(error)}")
            return
        yield Row(line=line, value=value)
        place = end


def _first(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def problems_of(row: object) -> list[str]:
    """Everything that is wrong with one parsed row, pictures not opened; empty for a good row."""
    if not isinstance(row, dict):
        return [f"a row is an object with id, image and conversations, not {type(row).__name__}"]
    found: list[str] = []
    if not isinstance(row.get("id", ""), str | int):
        found.append("id must be a string or a number")
    image = row.get("image")
    if image is not None and (not isinstance(image, str) or not image):
        found.append("image must be the path of one picture; leave it out of a text-only row")
    elif image and ("://" in image or image.startswith("data:") or "\0" in image):
        found.append("image is no path; nothing is ever fetched, so download the picture and give its path")
    found += _problems_of_turns(row.get("conversations"), has_image=bool(image))
    metric, choices = row.get("metric", "exact_match"), row.get("choices") or []
    if metric not in METRICS:
        found.append(f"metric {metric!r} is unknown; use one of {', '.join(METRICS)}")
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        found.append("choices must be a list of strings that are not empty")
    elif metric == "multiple_choice" and not found and row["conversations"][-1]["value"].strip() not in choices:
        found.append("the answer is not among the choices")
    return found


def _problems_of_turns(messages: object, *, has_image: bool) -> list[str]:
    if not isinstance(messages, list) or not messages:
        return ["conversations must be a list that is not empty"]
    found: list[str] = []
    placeholders = 0
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("value"), str):
            found.append(f'message {number} must be an object {{"from": ..., "value": text}}')
            continue
        if not is_unicode(message["value"]):
            found.append(f"message {number} holds half of a surrogate pair; write the character itself")
        asked = number % 2 == 1
        if message.get("from") not in (HUMAN if asked else MODEL):
            found.append(f"message {number} is from {message.get('from')!r}, expected {'human' if asked else 'gpt'!r}")
        here = message["value"].count(PLACEHOLDER)
        placeholders += here
        if here and number > 1:
            found.append(f"message {number} holds {PLACEHOLDER}, which belongs into the first question")
        if not message["value"].replace(PLACEHOLDER, "").strip():
            found.append(f"message {number} is an empty {'question' if asked else 'answer'}")
    if len(messages) % 2:
        found.append("the last question has no answer")
    if placeholders > 1:
        found.append(f"{placeholders} placeholders {PLACEHOLDER}; one picture a row is supported")
    if placeholders and not has_image:
        found.append(f"{PLACEHOLDER} without an image")
    return found


def is_unicode(text: str) -> bool:
    """JSON can spell half a character (a lone \\ud800), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _convert(row: dict[str, Any], root: Path, where: str) -> Conversation:
    messages = row["conversations"]
    turns = tuple(
        Turn(
            question=asked["value"].replace(PLACEHOLDER, "").strip(),
            answer=said["value"].strip(),
            skill=str(asked.get("skill", "")),
        )
        for asked, said in zip(messages[::2], messages[1::2], strict=True)
    )
    return Conversation(
        id=str(row.get("id", where)),
        image=root / row["image"] if row.get("image") else None,
        turns=turns,
        where=where,
        skill=str(row.get("skill") or ""),
        metric=row.get("metric", "exact_match"),
        choices=tuple(choice.strip() for choice in row.get("choices") or ()),
        template=str(row.get("template") or ""),
    )
