"""The blind baseline: what can be scored without the picture.

For each skill the best of these guessers:

- majority: the most frequent answer of the training split to questions of the same template; among the offered
  choices, where there are some; of the whole skill, where the template was never trained
- the model itself, with the picture's features zeroed
- where a recipe asks for it, a model that was trained as long without ever seeing a picture
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from mote.data.conversation import Conversation
from mote.evaluate.metrics import score
from mote.evaluate.results import Answered, Score

_SLOT = re.compile(r"\\\{[^{}]*\\\}")


class Majority:
    """Answers learned from training conversations, without their pictures."""

    def __init__(self, training: Sequence[Conversation]) -> None:
        self._asked: dict[str, list[tuple[str, str]]] = {}
        self._templates: dict[tuple[str, str], Counter[str]] = {}
        for row in training:
            for turn in row.turns:
                self._asked.setdefault(turn.skill or row.skill, []).append((turn.question, turn.answer))

    def answer(self, question: Conversation) -> str:
        """The guess, "" when nothing was ever asked of this skill and there are no choices."""
        template = question.template or question.turns[-1].question
        counts = self._counts(question.skill, template) or self._counts(question.skill, "{anything}")
        if question.choices:
            return max(question.choices, key=lambda choice: counts[choice])
        # Ties go to the answer that sorts first, so that the guess does not depend on the order of the file.
        return min(counts, key=lambda answer: (-counts[answer], answer), default="")

    def _counts(self, skill: str, template: str) -> Counter[str]:
        key = (skill, template)
        if key not in self._templates:
            pattern = re.compile(_SLOT.sub(".+", re.escape(template)))
            asked = self._asked.get(skill, [])
            self._templates[key] = Counter(answer for text, answer in asked if pattern.fullmatch(text))
        return self._templates[key]


def guess(training: Sequence[Conversation], questions: Sequence[Conversation]) -> list[Answered]:
    """Every question answered by the majority of the training split."""
    majority = Majority(training)
    answers = []
    for question in questions:
        given = majority.answer(question)
        answers.append(
            Answered(
                id=question.id,
                skill=question.skill,
                metric=question.metric,
                question=question.turns[-1].question,
                expected=question.answer,
                given=given,
                score=score(question.metric, given, question.answer),
            )
        )
    return answers


def best(candidates: Mapping[str, Mapping[str, Score]]) -> dict[str, str]:
    """For each skill the name of the candidate with the highest score; at a tie the one that comes first."""
    skills = dict.fromkeys(skill for scores in candidates.values() for skill in scores)
    return {
        skill: max((name for name in candidates if skill in candidates[name]), key=lambda n: candidates[n][skill].value)
        for skill in skills
    }
