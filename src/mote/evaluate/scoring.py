"""Scoring any `Scorer` on questions: which of its two functions answers which metric.

exact_match        the expected answer is right if greedy decoding gives exactly its tokens and then ends the turn; one
                   forward pass says so and no answer is generated (`EvaluateConfig.generate_exact`: where this differs)
multiple_choice    the choice with the highest log-probability, summed over its tokens and the end of turn
relaxed_accuracy, one_minus_cer   the answer is generated
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mote.data.conversation import Conversation
from mote.evaluate.config import EvaluateConfig
from mote.evaluate.metrics import score
from mote.evaluate.results import Answered
from mote.evaluate.scorer import Scorer

UNNAMED = "answers"
"""Skill of the questions of a file that names none."""


def questions_of(rows: Sequence[Conversation], limit: int = 0) -> list[Conversation]:
    """One conversation per question: a row of several turns is asked turn by turn, its true answers before
    it as context. At most `limit` questions of each skill (0: all), the first of the file.
    """
    questions: list[Conversation] = []
    taken: dict[str, int] = {}
    for row in rows:
        for count in range(1, len(row.turns) + 1):
            skill = row.skill or row.turns[count - 1].skill or UNNAMED
            taken[skill] = taken.get(skill, 0) + 1
            if limit and taken[skill] > limit:
                continue
            identity = row.id if len(row.turns) == 1 else f"{row.id}#{count}"
            questions.append(replace(row, id=identity, turns=row.turns[:count], skill=skill))
    return questions


def score_questions(
    scorer: Scorer, questions: Sequence[Conversation], config: EvaluateConfig, root: Path | None = None
) -> list[Answered]:
    """Answers every question by the way of its metric, in the order of `questions`. Paths in the log start at
    `root`."""
    done: dict[int, Answered] = {}
    by_way: dict[str, list[int]] = {"check": [], "choose": [], "generate": []}
    for index, question in enumerate(questions):
        by_way[_way(question, config)].append(index)
    checked = scorer.loglikelihood([questions[i] for i in by_way["check"]])
    for i, (logprob, greedy) in zip(by_way["check"], checked, strict=True):
        question = questions[i]
        given = question.answer if greedy else None
        done[i] = _answered(question, given, float(greedy), logprob, root)
    offers = [(i, choice) for i in by_way["choose"] for choice in questions[i].choices]
    likelihoods = scorer.loglikelihood([questions[i].with_answer(choice) for i, choice in offers])
    best: dict[int, tuple[float, str]] = {}
    for (i, choice), (logprob, _) in zip(offers, likelihoods, strict=True):
        if i not in best or logprob > best[i][0]:
            best[i] = (logprob, choice)
    for i, (logprob, choice) in best.items():
        done[i] = _answered(questions[i], choice, score("multiple_choice", choice, questions[i].answer), logprob, root)
    texts = scorer.generate_until([questions[i] for i in by_way["generate"]], max_tokens=config.max_tokens)
    for i, text in zip(by_way["generate"], texts, strict=True):
        question = questions[i]
        done[i] = _answered(question, text, score(question.metric, text, question.answer), None, root)
    return [done[index] for index in range(len(questions))]


def shown_questions(questions: Sequence[Conversation], count: int) -> list[Conversation]:
    """The first questions of each skill in turn, `count` in all: shown because of their place, not their
    answer.
    """
    groups: dict[str, list[Conversation]] = {}
    pictures: set[Path] = set()
    for question in questions:
        if question.image is not None and question.image not in pictures:
            pictures.add(question.image)
            groups.setdefault(question.skill, []).append(question)
    shown: list[Conversation] = []
    depth = 0
    while len(shown) < count and any(depth < len(group) for group in groups.values()):
        shown += [group[depth] for group in groups.values() if depth < len(group)]
        depth += 1
    return shown[:count]


def show(
    scorer: Scorer, questions: Sequence[Conversation], config: EvaluateConfig, root: Path | None = None
) -> list[Answered]:
    """Questions answered in text, whatever their metric, and scored by that text."""
    texts = scorer.generate_until(questions, max_tokens=config.max_tokens)
    return [
        _answered(question, text, score(question.metric, text, question.answer), None, root)
        for question, text in zip(questions, texts, strict=True)
    ]


def _way(question: Conversation, config: EvaluateConfig) -> str:
    if question.metric == "multiple_choice" and question.choices:
        return "choose"
    if question.metric == "exact_match" and not config.generate_exact:
        return "check"
    return "generate"


def _answered(
    question: Conversation, given: str | None, value: float, logprob: float | None, root: Path | None
) -> Answered:
    image = None if question.image is None else os.path.relpath(question.image, root or Path())
    return Answered(
        id=question.id,
        skill=question.skill,
        metric=question.metric,
        question=question.turns[-1].question,
        expected=question.answer,
        given=given,
        score=value,
        logprob=logprob,
        image=image,
    )
