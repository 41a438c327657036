import json
from pathlib import Path
from typing import Any

import pytest

from mote.data.conversation import problems_of, read_conversations
from mote.errors import DataError

GOOD: dict[str, Any] = {
    "id": "1",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": " A cat. "},
        {"from": "human", "value": "How many?"},
        {"from": "gpt", "value": "2"},
    ],
}
TEXT_ONLY: dict[str, Any] = {
    "id": 7,
    "conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}],
}


def changed(**values: Any) -> dict[str, Any]:
    return {**GOOD, **values}


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_turns_picture_and_place_of_a_row(tmp_path: Path) -> None:
    [one, two] = read_conversations(write(tmp_path / "a.jsonl", GOOD, "", TEXT_ONLY))

    assert [(t.question, t.answer) for t in one.turns] == [("What is it?", "A cat."), ("How many?", "2")]
    assert one.image == tmp_path / "a.png"
    assert one.where == f"{tmp_path / 'a.jsonl'}:1"
    assert (two.id, two.image, two.where) == ("7", None, f"{tmp_path / 'a.jsonl'}:3")
    assert two.answer == "Hello"


def test_a_json_array_and_json_lines_are_the_same_rows(tmp_path: Path) -> None:
    lines = read_conversations(write(tmp_path / "a.jsonl", GOOD, TEXT_ONLY))
    array = read_conversations(write(tmp_path / "a.json", "\ufeff[" + json.dumps(GOOD) + ",", TEXT_ONLY, "]"))

    assert [c.turns for c in array] == [c.turns for c in lines]
    assert array[1].where.endswith("a.json:2")


def test_extras_of_an_evaluation_row(tmp_path: Path) -> None:
    row = {
        **GOOD,
        "conversations": messages("<image>\nWhat is it?", "cat"),
        "skill": "naming",
        "metric": "multiple_choice",
        "choices": ["dog", "cat"],
        "template": "What is it?",
    }
    [found] = read_conversations(write(tmp_path / "a.jsonl", row))

    assert (found.skill, found.metric, found.template) == ("naming", "multiple_choice", "What is it?")
    assert found.choices == ("dog", "cat")
    assert found.with_answer("dog").answer == "dog"
    assert found.answer == "cat"


def test_cut_after_some_turns(tmp_path: Path) -> None:
    [found] = read_conversations(write(tmp_path / "a.jsonl", GOOD))

    assert found.first(1).answer == "A cat."
    assert found.first(9) == found


def test_pictures_below_another_root(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)

    [found] = read_conversations(path, image_root=tmp_path / "pictures")

    assert found.image == tmp_path / "pictures" / "a.png"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (3, "a row is an object"),
        (changed(id=[1]), "id must be"),
        (changed(image=3), "image must be the path"),
        (changed(image=["a.png", "b.png"]), "image must be the path"),
        (changed(image="https://example.org/a.png"), "nothing is ever fetched"),
        (changed(image="data:image/png;base64,AAAA"), "nothing is ever fetched"),
        (changed(image="a\0.png"), "image is no path"),
        (changed(conversations=messages("Half \ud800?", "cat")), "message 1 holds half of a surrogate pair"),
        (changed(conversations=[]), "not empty"),
        (changed(conversations=None), "not empty"),
        (changed(conversations=messages("<image>\nWhat?", " ")), "message 2 is an empty answer"),
        (changed(conversations=messages("<image>\n", "cat")), "message 1 is an empty question"),
        (changed(conversations=messages("<image>\nWhat?")), "the last question has no answer"),
        (changed(conversations=messages("<image><image> Same?", "no")), "2 placeholders"),
        (changed(conversations=messages("What?", "cat", "<image> And?", "dog")), "message 3 holds <image>"),
        (changed(conversations=[{"from": "gpt", "value": "cat"}]), "message 1 is from 'gpt'"),
        (changed(conversations=[{"from": "human", "value": 3}]), "message 1 must be an object"),
        ({k: v for k, v in GOOD.items() if k != "image"}, "<image> without an image"),
        (changed(metric="bleu"), "metric 'bleu' is unknown"),
        (changed(choices=["a", ""]), "choices must be"),
        (changed(metric="multiple_choice", choices=["dog"]), "not among the choices"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(tmp_path: Path, row: Any, problem: str) -> None:
    assert any(problem in found for found in problems_of(row)), problems_of(row)
    path = write(tmp_path / "a.jsonl", GOOD, row)
    with pytest.raises(DataError, match=r"a\.jsonl:2: "):
        read_conversations(path)


def test_the_number_of_further_problems_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "{", GOOD, "[1, 2]", "nonsense")

    with pytest.raises(DataError, match=r"a\.jsonl:1: not JSON: .* \(and 2 more: mote data validate"):
        read_conversations(path)


@pytest.mark.parametrize("text", ["[\n" + json.dumps(GOOD) + ",\n{", "[\n" + json.dumps(GOOD) + "\n,"])
def test_a_truncated_array_names_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)

    with pytest.raises(DataError, match=r"a\.json:3: not JSON"):
        read_conversations(tmp_path / "a.json")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    (tmp_path / "empty.jsonl").write_text("\n")

    for name, reason in (("gone", "No such file"), ("latin", "not UTF-8"), ("empty", "holds no conversation")):
        with pytest.raises(DataError, match=rf"{name}\.jsonl: .*{reason}|{name}\.jsonl: {reason}"):
            read_conversations(tmp_path / f"{name}.jsonl")
