"""What an evaluation found: scores per skill with intervals, and a log of every question."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mote.errors import DataError
from mote.evaluate.intervals import average, bootstrap, wilson

SCHEMA = 1
RESULT_FILE, LOG_FILE, SHOWN_FILE = "result.json", "samples.jsonl", "shown.jsonl"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question and how it was answered.

    given: the model's answer; None where only the expected answer was checked and it was not the model's.
    logprob: of the expected answer in nats, where it was computed. image: path as the data file has it.
    """

    id: str
    skill: str
    metric: str
    question: str
    expected: str
    given: str | None
    score: float
    logprob: float | None = None
    image: str | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean score of n questions (0-1) and its 95% interval."""

    value: float
    n: int
    low: float
    high: float
    metric: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Scores by skill and their unweighted average.

    routing: per layer {"layer", "load_text", "load_image", "entropy", "mean_gate"}, for a mixture; an engine gives no
    entropy.
    provenance: model, data, settings, machine.
    """

    skills: Mapping[str, Score]
    average: Score
    answered: Sequence[Answered] = ()
    shown: Sequence[Answered] = ()
    routing: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """JSON-able form of all but the logs."""
        return {
            "schema": SCHEMA,
            "skills": {name: asdict(score) for name, score in self.skills.items()},
            "average": asdict(self.average),
            "routing": [dict(row) for row in self.routing],
            "provenance": dict(self.provenance),
        }

    def write(self, directory: Path) -> None:
        """Writes result.json, samples.jsonl (every question) and shown.jsonl (those answered in text)."""
        text = json.dumps(self.to_plain(), indent=2, sort_keys=True, default=str)
        (directory / RESULT_FILE).write_text(text + "\n", encoding="utf-8")
        for name, rows in ((LOG_FILE, self.answered), (SHOWN_FILE, self.shown)):
            lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
            (directory / name).write_text(lines, encoding="utf-8")


def summarise(answered: Iterable[Answered], *, seed: int = 0) -> tuple[dict[str, Score], Score]:
    """Scores by skill in order of appearance, and their unweighted average. DataError when nothing was
    answered.

    A skill whose scores are all 0 or 1 gets Wilson's interval, another one the bootstrap's; the average
    MOVER's.
    """
    groups: dict[str, list[Answered]] = {}
    for row in answered:
        groups.setdefault(row.skill, []).append(row)
    if not groups:
        raise DataError("there is no question to score")
    skills = {}
    for skill, rows in groups.items():
        values = [row.score for row in rows]
        binary = all(value in (0.0, 1.0) for value in values)
        low, high = wilson(sum(values), len(values)) if binary else bootstrap(values, seed=seed)
        # Relaxed accuracy of an answer that is no number is exact match: a skill with both has one metric.
        metrics = {row.metric for row in rows}
        metric = "relaxed_accuracy" if metrics == {"relaxed_accuracy", "exact_match"} else " + ".join(sorted(metrics))
        skills[skill] = Score(value=sum(values) / len(values), n=len(values), low=low, high=high, metric=metric)
    value, low, high = average([(s.value, s.low, s.high) for s in skills.values()])
    n = sum(score.n for score in skills.values())
    return skills, Score(value=value, n=n, low=low, high=high, metric="unweighted mean")
