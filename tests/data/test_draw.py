import json
from collections import Counter
from pathlib import Path

import pytest

from mote.data.conversation import read_conversations
from mote.data.draw import MixConfig, SkillConfig, draw
from mote.data.skills import SKILLS
from mote.data.validation import validate
from mote.errors import DataError, RecipeError
from mote.recipe import from_plain, to_plain

pytestmark = pytest.mark.usefixtures("small_wheels")


def config(**skills: SkillConfig) -> MixConfig:
    return MixConfig(skills=skills, seed=3)


@pytest.fixture
def all_skills() -> MixConfig:
    counts = {"train": 6, "val": 4, "test": 4, "final": 3}
    return config(**{name: SkillConfig(**counts) for name in SKILLS})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_mix_is_valid_whole_and_disjoint(tmp_path: Path, all_skills: MixConfig) -> None:
    paths = draw(all_skills, tmp_path / "mix", progress=False)

    rows = {split: read_conversations(path) for split, path in paths.items()}
    assert all(validate(path) == [] for path in paths.values())
    assert {split: len(r) for split, r in rows.items()} == {"train": 36, "val": 24, "test": 24, "final": 18}
    pictures = [{row.image for row in r} for r in rows.values()]
    assert sum(map(len, pictures)) == len(set.union(*pictures))
    for split in ("val", "test"):
        assert Counter(row.skill for row in rows[split]) == dict.fromkeys(SKILLS, 4)
        assert all(len(row.turns) == 1 and row.template for row in rows[split])
        assert all(row.metric != "multiple_choice" or row.answer in row.choices for row in rows[split])


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path, all_skills: MixConfig) -> None:
    draw(all_skills, tmp_path / "one", progress=False)
    draw(all_skills, tmp_path / "two", progress=False)

    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_interrupted_drawing_goes_on(tmp_path: Path, all_skills: MixConfig) -> None:
    draw(all_skills, tmp_path / "one", progress=False)
    before = contents(tmp_path / "one")
    kept, *rest = sorted((tmp_path / "one" / "images").iterdir())
    stamp = kept.stat().st_mtime_ns
    for path in rest[::2]:
        path.unlink()
    (tmp_path / "one" / "mix.json").write_text('{"unfinished": {}}')
    (tmp_path / "one" / "images" / "x.partial-1").write_bytes(b"half")

    draw(all_skills, tmp_path / "one", progress=False)

    assert contents(tmp_path / "one") == before
    assert kept.stat().st_mtime_ns == stamp


def test_a_finished_mix_is_not_touched_and_other_settings_are_drawn(tmp_path: Path) -> None:
    small = config(naming=SkillConfig(train=3, val=1, test=1, final=0))
    path = draw(small, tmp_path, progress=False)["train"]
    path.write_text("kept")

    draw(small, tmp_path, progress=False)
    assert path.read_text() == "kept"

    draw(config(naming=SkillConfig(train=4, val=1, test=1, final=0)), tmp_path, progress=False)
    assert len(read_conversations(path)) == 4


def test_turns_of_one_picture_do_not_answer_each_other(tmp_path: Path) -> None:
    counts = {"train": 30, "val": 0, "test": 0, "final": 0, "questions": 4}
    several = config(counting=SkillConfig(**counts), spatial=SkillConfig(**counts), attributes=SkillConfig(**counts))

    path = draw(several, tmp_path, progress=False)["train"]

    rows = read_conversations(path)
    assert max(len(row.turns) for row in rows) > 1
    for row in rows:
        for place, turn in enumerate(row.turns):
            said = " ".join(f"{t.question} {t.answer}" for k, t in enumerate(row.turns) if k != place)
            assert turn.answer not in said


def test_counts_of_evaluation_are_balanced(tmp_path: Path) -> None:
    path = draw(config(counting=SkillConfig(train=0, val=20, test=0, final=0)), tmp_path, progress=False)["val"]

    assert Counter(row.answer for row in read_conversations(path)) == {"1": 5, "2": 5, "3": 5, "4": 5}


def test_a_listing_is_for_training_only(tmp_path: Path) -> None:
    listing = SkillConfig(train=5, val=5, test=0, final=0, options={"listing": True})
    paths = draw(config(spatial=listing), tmp_path, progress=False)

    for row in read_conversations(paths["train"]):
        assert [turn.question for turn in row.turns].index("List the things.") == 2
    assert not any("List" in t.question for row in read_conversations(paths["val"]) for t in row.turns)


def test_a_skill_that_runs_out_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'attributes' has too few different pictures"):
        draw(config(attributes=SkillConfig(train=5000)), tmp_path, progress=False)


def test_a_recipe_section_becomes_the_config(all_skills: MixConfig) -> None:
    assert from_plain(MixConfig, to_plain(all_skills)) == all_skills
    with pytest.raises(RecipeError, match="juggling"):
        from_plain(MixConfig, {"skills": {"juggling": {}}})
    with pytest.raises(RecipeError, match=r"naming.*concept"):
        from_plain(MixConfig, {"skills": {"naming": {"options": {"concept": 9}}}})
    with pytest.raises(RecipeError, match="negative"):
        from_plain(MixConfig, {"skills": {"naming": {"train": -1}}})


def test_an_empty_mix_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.skills is empty"):
        draw(config(), tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=r"file.*cannot be written"):
        draw(config(naming=SkillConfig(train=1, val=0, test=0, final=0)), tmp_path / "file", progress=False)


def test_train_rows_say_the_skill_of_each_turn(tmp_path: Path) -> None:
    path = draw(config(counting=SkillConfig(train=20, val=0, test=0, final=0)), tmp_path, progress=False)["train"]

    skills = Counter(turn.skill for row in read_conversations(path) for turn in row.turns)
    assert set(skills) == {"counting", "spatial"}
    assert skills["counting"] == 20
    assert json.loads(path.read_text().splitlines()[0])["image"].startswith("images/scene-")


def test_files_that_were_not_drawn_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text("mine")
    with pytest.raises(DataError, match="was not drawn"):
        draw(config(naming=SkillConfig(train=1, val=1, test=1, final=0)), tmp_path, progress=False)
    assert (tmp_path / "val.jsonl").read_text() == "mine"
