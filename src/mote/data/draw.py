"""Draw a mix of skills to disk: `train.jsonl`, `val.jsonl`, `test.jsonl`, `final.jsonl` and `images/`.

A training row is one picture with several questions as turns, since its image tokens are then paid for once.
An evaluation row is one picture with one question, and carries skill, metric, choices, template and answer.
Everything is a function of the settings and the seed; a run that was interrupted goes on with the pictures
that are missing.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mote.checkpoint.atomic import write_file
from mote.data.skills import Skill, make_skill
from mote.data.skills.picture import EVAL_SPLITS, SPLITS, Picture, Question, Split, dice, digest
from mote.errors import DataError, RecipeError

MANIFEST = "mix.json"
VERSION = 1
"""Raise it when what is drawn changes, so that an older folder is drawn again."""
PATIENCE = 200_000
"""Pictures in a row that are of no use before a skill is called exhausted."""


@dataclass(frozen=True, kw_only=True)
class SkillConfig:
    """How much of one skill: `train` counts pictures, `val`, `test` and `final` count questions.

    questions: turns per training picture, at most. options: the skill's own settings, such as {"concepts":
    60}.
    """

    train: int = 1000
    val: int = 300
    test: int = 300
    final: int = 300
    questions: int = 3
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.train, self.val, self.test, self.final) < 0 or self.questions < 1:
            raise RecipeError(f"counts of a skill must not be negative and questions at least 1: {self}")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """skills: name -> how much of it; seed: decides the pictures, never their split."""

    skills: dict[str, SkillConfig]
    seed: int = 0

    def __post_init__(self) -> None:
        for name, settings in self.skills.items():
            make_skill(name, settings.options)


def draw(config: MixConfig, out: Path | str, *, progress: bool = True) -> dict[Split, Path]:
    """Draw the mix into the folder `out` and return the path of each split's JSONL file.

    Raises RecipeError for unknown skills or settings and DataError when a skill runs out of pictures, the disk fails,
    or the folder holds JSONL files of a split that were not drawn.
    """
    out = Path(out)
    manifest = {
        "version": VERSION,
        "seed": config.seed,
        "skills": {n: asdict(c) for n, c in config.skills.items()},
    }
    paths = {split: out / f"{split}.jsonl" for split in SPLITS}
    if not config.skills:
        raise RecipeError("data.skills is empty; name at least one skill")
    makers = {name: make_skill(name, settings.options) for name, settings in config.skills.items()}
    if _is_done(out, manifest):
        return paths
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        _claim(out, manifest)
        for leftover in (out / "images").glob("*.partial-*"):
            leftover.unlink()
        rows: dict[Split, list[dict[str, object]]] = {split: [] for split in SPLITS}
        for name, settings in config.skills.items():
            chosen = _choose(makers[name], settings, config.seed)
            for picture, questions in _watched(chosen, name, progress):
                _paint(picture, out)
                rows[picture.split] += _rows(picture, questions)
        dice(config.seed, "order").shuffle(rows["train"])
        for split, path in paths.items():
            write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[split]).encode())
        write_file(out / MANIFEST, json.dumps(manifest, indent=1).encode())
    except OSError as error:
        raise DataError(
            f"{error.filename or out}: cannot be written: {error.strerror}; free space or choose --out"
        ) from None
    return paths


def _choose(skill: Skill, settings: SkillConfig, seed: int) -> list[tuple[Picture, list[Question]]]:
    """The first pictures of a skill that fill every split, each with the questions that will be asked."""
    wanted: dict[Split, int] = {
        "train": settings.train,
        "val": settings.val,
        "test": settings.test,
        "final": settings.final,
    }
    chosen: list[tuple[Picture, list[Question]]] = []
    stems: set[str] = set()
    asked = dict(wanted)
    taken: Counter[tuple[Split, str]] = Counter()
    idle = 0
    for picture in skill.pictures(seed):
        if not any(wanted.values()):
            return chosen
        idle += 1
        if idle > PATIENCE:
            break
        quota = -(-asked[picture.split] // skill.strata)
        if wanted[picture.split] <= 0 or picture.stem in stems or taken[picture.split, picture.stratum] >= quota:
            continue
        if picture.split == "train":
            questions = _turn_order(picture, settings.questions, seed)
            wanted["train"] -= 1
        else:
            own = [q for q in picture.questions if q.skill == skill.name and not q.train_only]
            questions = own[: min(2, wanted[picture.split])]
            wanted[picture.split] -= len(questions)
        if questions:
            idle = 0
            stems.add(picture.stem)
            taken[picture.split, picture.stratum] += 1 if picture.split == "train" else len(questions)
            chosen.append((picture, questions))
    if missing := {split: n for split, n in wanted.items() if n}:
        raise DataError(f"skill {skill.name!r} has too few different pictures: {missing} missing; ask for fewer")
    return chosen


def _turn_order(picture: Picture, limit: int, seed: int) -> list[Question]:
    """The questions of a training row. A listing comes last: what it says would answer all that follow."""
    last = [q for q in picture.questions if q.train_only][: limit - 1]
    turns = _independent([q for q in picture.questions if not q.train_only])[: limit - len(last)]
    # The first question is the skill's own; its place among the turns must not give it away.
    dice(seed, picture.stem).shuffle(turns)
    return turns + last


def _independent(questions: list[Question]) -> list[Question]:
    """Those that cannot be answered from the text of the others: turns would else teach copying, not
    looking."""
    kept: list[Question] = []
    for q in questions:
        said = " | ".join(f"{other.text} {other.answer}" for other in kept).lower()
        asked = f"{q.text} {q.answer}".lower()
        if q.answer.lower() not in said and not any(other.answer.lower() in asked for other in kept):
            kept.append(q)
    return kept


def _rows(picture: Picture, questions: list[Question]) -> list[dict[str, object]]:
    image = f"images/{picture.stem}.png"
    if picture.split not in EVAL_SPLITS:
        turns = [turn for place, q in enumerate(questions) for turn in _turns(q, first=place == 0)]
        return [{"id": picture.stem, "image": image, "conversations": turns}]
    return [
        {
            "id": f"{picture.stem}-{digest(q.text)[:6]}",
            "image": image,
            "skill": q.skill,
            "metric": q.metric,
            "choices": list(q.choices),
            "template": q.template,
            "answer": q.answer,
            "conversations": _turns(q, first=True),
        }
        for q in questions
    ]


def _turns(question: Question, *, first: bool) -> list[dict[str, str]]:
    text = f"<image>\n{question.text}" if first else question.text
    return [
        {"from": "human", "value": text, "skill": question.skill},
        {"from": "gpt", "value": question.answer},
    ]


def _paint(picture: Picture, out: Path) -> None:
    path = out / "images" / f"{picture.stem}.png"
    if path.exists() and path.stat().st_size:
        return
    partial = path.with_suffix(f".partial-{os.getpid()}")
    picture.paint().save(partial, format="PNG", compress_level=1)
    partial.replace(path)


def _claim(out: Path, manifest: dict[str, object]) -> None:
    """Marks the folder as a mix that is being drawn. Refuses one whose JSONL files are somebody else's."""
    taken = [out / f"{split}.jsonl" for split in SPLITS if (out / f"{split}.jsonl").exists()]
    if taken and not (out / MANIFEST).exists():
        raise DataError(f"{taken[0]}: was not drawn, so it is not replaced; choose another --out")
    write_file(out / MANIFEST, json.dumps({"unfinished": manifest}, indent=1).encode())


def _is_done(out: Path, manifest: dict[str, object]) -> bool:
    """Whether the folder holds this very mix: the manifest is written last."""
    try:
        return bool(json.loads((out / MANIFEST).read_text()) == json.loads(json.dumps(manifest)))
    except (OSError, ValueError):
        return False


def _watched(
    items: list[tuple[Picture, list[Question]]], name: str, progress: bool
) -> Iterator[tuple[Picture, list[Question]]]:
    if not progress:
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)  # stdout is for results
    watched: Iterable[tuple[Picture, list[Question]]] = track(items, description=f"drawing {name}", console=console)
    yield from watched
