import json
from pathlib import Path

import pytest
from PIL import Image

from mote.data.validation import validate
from mote.errors import DataError


def row(number: int, **values: object) -> dict[str, object]:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    return {"id": str(number), "image": "good.png", "conversations": turns, **values}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.effect_noise((40, 30), 50).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:-300])
    return tmp_path


def write(folder: Path, *rows: object) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_a_good_file_has_no_problem(folder: Path) -> None:
    assert validate(write(folder, row(1), row(2))) == []


def test_all_bad_rows_are_listed_at_once(folder: Path) -> None:
    empty = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": ""}]
    path = write(
        folder, row(1), "{", row(3, conversations=empty), row(4, image="cut.png"), row(5, image="gone.png"), row(1)
    )

    found = [str(problem) for problem in validate(path)]

    assert len(found) == 5
    for line, text, message in zip(
        (2, 3, 4, 5, 6),
        found,
        ("not JSON", "empty answer", "cut.png: damaged", "gone.png: no such file", "id '1' was already used in line 1"),
        strict=True,
    ):
        assert text.startswith(f"{path}:{line}: ")
        assert message in text


def test_pictures_are_capped(folder: Path) -> None:
    [problem] = validate(write(folder, row(1)), max_pixels=100)

    assert "more than the cap of 100" in problem.message


def test_pictures_can_be_left_closed(folder: Path) -> None:
    assert validate(write(folder, row(1, image="gone.png")), open_images=False) == []


def test_an_empty_file_is_a_problem_and_a_missing_one_an_error(folder: Path) -> None:
    assert [p.message for p in validate(write(folder))] == ["holds no conversation"]
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        validate(folder / "gone.jsonl")
