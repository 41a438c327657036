"""Which way a metric is answered, what is shown, and the blind baseline, with a scorer that knows its answers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mote.data.conversation import Conversation, Turn
from mote.errors import DataError, RecipeError
from mote.evaluate.blind import Majority, best, guess
from mote.evaluate.config import EvaluateConfig
from mote.evaluate.results import Answered, Score, summarise
from mote.evaluate.scorer import Scorer
from mote.evaluate.scoring import questions_of, score_questions, show, shown_questions


class Clerk:
    """A `Scorer` that says what its table says; likelihood: minus the distance in length from that."""

    def __init__(self, table: dict[str, str]) -> None:
        self.table = table
        self.generated = 0

    def generate_until(self, requests: Sequence[Conversation], *, max_tokens: int) -> list[str]:
        self.generated += len(requests)
        return [self.table[r.turns[-1].question][:max_tokens] for r in requests]

    def loglikelihood(self, requests: Sequence[Conversation]) -> list[tuple[float, bool]]:
        said = [(self.table[r.turns[-1].question], r.answer) for r in requests]
        return [(-float(abs(len(a) - len(b))) - (a != b) / 2, a == b) for a, b in said]


def ask(question: str, answer: str, metric: str = "exact_match", **extra: object) -> Conversation:
    conversation = Conversation(
        id=question, image=Path(f"/data/images/{question}.png"), turns=(Turn(question=question, answer=answer),),
        metric=metric, skill=metric,
    )  # fmt: skip
    return replace(conversation, **extra)  # type: ignore[arg-type]


def test_every_metric_is_answered_its_own_way_and_order_is_kept() -> None:
    clerk = Clerk({"a": "red", "b": "blue", "c": "cat", "d": "103", "e": "kitten", "f": "wrong"})
    scorer: Scorer = clerk
    questions = [
        ask("e", "sitting", "one_minus_cer"),
        ask("a", "red"),
        ask("c", "dog!!", "multiple_choice", choices=("dog!!", "cat", "a horse")),
        ask("d", "100", "relaxed_accuracy"),
        ask("f", "right"),
    ]
    rows = score_questions(scorer, questions, EvaluateConfig(), Path("/data"))
    assert [row.id for row in rows] == ["e", "a", "c", "d", "f"]
    assert [row.score for row in rows] == pytest.approx([1 - 3 / 7, 1, 0, 1, 0])
    assert [row.given for row in rows] == ["kitten", "red", "cat", "103", None]
    assert rows[0].image == "images/e.png"
    assert clerk.generated == 2
    rows = score_questions(scorer, questions, EvaluateConfig(generate_exact=True), Path("/data"))
    assert [row.given for row in rows] == ["kitten", "red", "cat", "103", "wrong"]


def test_a_row_of_several_turns_is_several_questions() -> None:
    turns = tuple(Turn(question=f"q{i}", answer=f"a{i}", skill=f"s{i % 2}") for i in range(3))
    row = Conversation(id="r", image=None, turns=turns)
    questions = questions_of([row])
    assert [(q.id, q.skill, len(q.turns), q.answer) for q in questions] == [
        ("r#1", "s0", 1, "a0"), ("r#2", "s1", 2, "a1"), ("r#3", "s0", 3, "a2"),
    ]  # fmt: skip
    plain = Conversation(id="p", image=None, turns=(Turn(question="q", answer="a"),))
    assert [(q.id, q.skill) for q in questions_of([plain])] == [("p", "answers")]
    assert [q.id for q in questions_of([row, replace(row, id="s")], limit=1)] == ["r#1", "r#2"]


def test_shown_questions_take_skills_in_turn_and_pictures_once() -> None:
    a = [ask(f"a{i}", "x") for i in range(3)]
    b = [ask(f"b{i}", "x", "one_minus_cer") for i in range(1)]
    again = replace(a[0], id="again")
    assert [q.id for q in shown_questions([*a, again, *b], 3)] == ["a0", "b0", "a1"]
    assert [q.id for q in shown_questions([*a, again, *b], 12)] == ["a0", "b0", "a1", "a2"]
    rows = show(Clerk({"a0": "y", "b0": "x"}), [a[0], b[0]], EvaluateConfig())
    assert [(row.given, row.score) for row in rows] == [("y", 0.0), ("x", 1.0)]


def test_summary_takes_wilson_for_right_and_wrong_and_bootstrap_for_shares() -> None:
    def rows(skill: str, metric: str, scores: list[float]) -> list[Answered]:
        return [
            Answered(id="", skill=skill, metric=metric, question="", expected="", given="", score=s) for s in scores
        ]

    charts = rows("charts", "relaxed_accuracy", [1, 0, 1]) + rows("charts", "exact_match", [1])
    skills, average = summarise([*rows("words", "one_minus_cer", [0.5, 0.9, 0.7]), *charts])
    assert list(skills) == ["words", "charts"]
    assert skills["charts"].metric == "relaxed_accuracy"
    assert (skills["charts"].value, skills["charts"].n) == (0.75, 4)
    assert skills["charts"].low == pytest.approx(0.3006, abs=1e-4)
    assert 0.5 <= skills["words"].low < 0.7 < skills["words"].high <= 0.9
    assert average.value == pytest.approx((0.7 + 0.75) / 2)
    assert average.n == 7
    with pytest.raises(DataError, match="no question"):
        summarise([])


def test_majority_answers_by_template_then_by_skill_and_within_the_choices() -> None:
    def taught(question: str, answer: str, skill: str) -> Conversation:
        return Conversation(id="", image=None, turns=(Turn(question=question, answer=answer, skill=skill),))

    majority = Majority([
        taught("How many owls are there?", "2", "counting"),
        taught("How many cars are there?", "3", "counting"),
        taught("How many red cars are there?", "3", "counting"),
        taught("Is it (one)?", "no", "counting"),
        taught("Is it (one)?", "no", "counting"),
        taught("Is it (one)?", "no", "counting"),
        taught("What is it?", "pig", "naming"),
        taught("What is it?", "cat", "naming"),
        taught("What is it?", "cat", "naming"),
    ])  # fmt: skip

    def guessed(question: str, skill: str, template: str = "", choices: tuple[str, ...] = ()) -> str:
        return majority.answer(ask(question, "-", skill=skill, template=template, choices=choices))

    assert guessed("How many apes are there?", "counting", "How many {things} are there?") == "3"
    assert guessed("Is it (one)?", "counting") == "no"
    assert guessed("Never heard", "counting", "Never {x}") == "no"
    assert guessed("What is it?", "naming", "What is it?", ("pig", "dog")) == "pig"
    assert guessed("What is it?", "naming", "What is it?") == "cat"
    assert guessed("What?", "unknown") == ""
    assert guessed("What?", "unknown", choices=("a", "b")) == "a"


def test_blind_takes_the_better_guesser_skill_by_skill() -> None:
    training = [Conversation(id="", image=None, turns=(Turn(question="q", answer="x", skill="exact_match"),))]
    rows = guess(training, [ask("q", "x"), ask("other", "y")])
    assert [(row.given, row.score) for row in rows] == [("x", 1.0), ("x", 0.0)]
    low, high = Score(value=0.1, n=1, low=0, high=1), Score(value=0.2, n=1, low=0, high=1)
    candidates = {"x": {"a": low, "b": high, "c": low}, "y": {"a": high, "b": low, "c": low}}
    assert best(candidates) == {"a": "y", "b": "x", "c": "x"}


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(RecipeError, match="batch_tokens"):
        EvaluateConfig(batch_tokens=0)
