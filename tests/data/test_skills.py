import itertools
from collections import Counter, defaultdict

import pytest
from PIL import Image

from mote.data.skills import SKILLS, make_skill
from mote.data.skills.concepts import SMALL, plural
from mote.data.skills.picture import SIDE, SPLITS, split_of
from mote.data.skills.scene import NEIGHBOURS, Scene, corner_questions, relation_questions
from mote.errors import RecipeError

pytestmark = pytest.mark.usefixtures("small_wheels")


def pictures(name: str, count: int = 60, seed: int = 0, **options: object):
    return list(itertools.islice(make_skill(name, options).pictures(seed), count))


@pytest.mark.parametrize("name", SKILLS)
def test_a_skill_is_a_function_of_its_seed(name: str) -> None:
    one, two, other = pictures(name), pictures(name), pictures(name, seed=1)

    assert [(p.stem, p.split, p.questions) for p in one] == [(p.stem, p.split, p.questions) for p in two]
    assert [p.stem for p in one] != [p.stem for p in other]
    assert one[0].paint().tobytes() == two[0].paint().tobytes()


@pytest.mark.parametrize("name", SKILLS)
def test_pictures_are_painted_and_questions_are_whole(name: str) -> None:
    for picture in pictures(name, 40):
        image = picture.paint()
        assert (image.mode, image.size) == ("RGB", (SIDE, SIDE))
        assert picture.split in SPLITS
        assert picture.questions
        for question in picture.questions:
            assert question.answer == question.answer.strip() != ""
            assert question.text.strip()
            assert question.template
            assert not question.choices or question.choices.count(question.answer) == 1
    assert any(question.skill == name for question in picture.questions)


@pytest.mark.parametrize("name", SKILLS)
def test_the_split_of_a_picture_does_not_depend_on_the_seed(name: str) -> None:
    where: dict[str, set[str]] = defaultdict(set)
    for seed in range(3):
        for picture in pictures(name, 80, seed=seed):
            where[picture.stem].add(picture.split)

    assert all(len(splits) == 1 for splits in where.values())


def test_the_splits_share_no_key_and_have_their_size() -> None:
    sizes = Counter(split_of("naming", key) for key in range(4000))

    assert set(sizes) == set(SPLITS)
    assert 0.67 < sizes["train"] / 4000 < 0.73
    assert all(0.08 < sizes[split] / 4000 < 0.12 for split in ("val", "test", "final"))


def test_naming_shows_every_concept_equally_often_with_four_choices() -> None:
    found = pictures("naming", 120)
    answers = Counter(p.questions[0].answer for p in found)

    assert set(answers.values()) == {2}
    assert set(answers) == set(SMALL.split())
    assert all(len(set(p.questions[0].choices)) == 4 for p in found)


def test_counting_is_balanced_and_true() -> None:
    found = pictures("counting", 80)

    assert Counter(p.questions[0].answer for p in found) == {"1": 20, "2": 20, "3": 20, "4": 20}
    for picture in found:
        scene = picture.paint.__self__
        counted = next(c for c in scene.cells if c and plural(c) in picture.questions[0].text)
        assert picture.questions[0].answer == str(scene.cells.count(counted))
        assert picture.stratum == picture.questions[0].answer


def test_the_same_things_are_in_one_split_whatever_their_arrangement() -> None:
    jitter = ((0.5, 0.5, 0.5),) * 4
    splits = {
        Scene(grid=2, cells=cells, paper=paper, jitter=jitter).split
        for cells in itertools.permutations(("cat", "cat", "dog", ""))
        for paper in range(8)
    }

    assert len(splits) == 1


def test_spatial_answers_are_true() -> None:
    scene = Scene(grid=2, cells=("cat", "dog", "owl", ""), paper=0, jitter=((0.5, 0.5, 0.5),) * 4)

    asked = {q.text: q.answer for q in [*corner_questions(scene), *relation_questions(scene)]}

    assert asked == {
        "What is at the top left?": "cat",
        "What is at the top right?": "dog",
        "What is at the bottom left?": "owl",
        "What is right of the cat?": "dog",
        "What is left of the dog?": "cat",
        "What is below the cat?": "owl",
        "What is above the owl?": "cat",
    }
    assert {relation for relation, _ in NEIGHBOURS} == {"left of", "right of", "above", "below"}


def test_a_thing_that_occurs_twice_is_no_landmark() -> None:
    scene = Scene(grid=2, cells=("cat", "cat", "owl", ""), paper=0, jitter=((0.5, 0.5, 0.5),) * 4)

    assert {q.text for q in relation_questions(scene)} == {"What is above the owl?"}


def test_scene_paints_each_thing_into_its_own_cell() -> None:
    scene = Scene(grid=2, cells=("cat", "", "", "dog"), paper=0, jitter=((1.0, 1.0, 0.0),) * 4)
    image = scene.paint()
    white = Image.new("RGB", (112, 112), "white").tobytes()

    cells = [image.crop((x, y, x + 112, y + 112)).tobytes() for y in (0, 112) for x in (0, 112)]

    assert [cell == white for cell in cells] == [False, True, True, False]


def test_attributes_asks_no_yes_no_question_and_trains_on_no_test_picture() -> None:
    found = pictures("attributes", 1000)

    assert {q.answer for p in found for q in p.questions} == {"red", "circle"}
    assert {p.split for p in found if "-test-" in p.stem} == {"test", "final"}
    assert {p.split for p in found if "-train-" in p.stem} == {"train", "val"}
    assert "attributes-test-0" in {p.stem for p in found}
    assert "attributes-train-0" not in {p.stem for p in found}


def test_words_of_training_are_not_words_of_test() -> None:
    by_split: dict[str, set[str]] = defaultdict(set)
    for picture in pictures("words", 600):
        by_split[picture.split].add(picture.questions[0].answer)

    assert by_split["train"]
    for one, other in itertools.combinations(SPLITS, 2):
        assert not by_split[one] & by_split[other]


def test_chart_answers_are_true() -> None:
    for picture in pictures("charts", 40):
        rows = dict(picture.paint.args[0])
        answers = {q.text: q.answer for q in picture.questions}
        assert rows[answers["Which country has the longest bar?"]] == max(rows.values())
        assert rows[answers["Which country has the shortest bar?"]] == min(rows.values())
        for name, value in rows.items():
            assert float(answers[f"What is the value of {name}?"]) == value


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("juggling", {}, "skill 'juggling' is unknown"),
        ("naming", {"concept": 5}, "concept"),
        ("naming", {"concepts": "many"}, r"data\.skills\.naming\.options\.concepts"),
        ("counting", {"max": 5}, "max=5 does not fit a grid of 2 x 2"),
        ("charts", {"fewest": 9}, "fewest=9"),
    ],
)
def test_unknown_skills_and_settings_are_errors(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_skill(name, options)
