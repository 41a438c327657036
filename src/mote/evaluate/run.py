"""Evaluating a checkpoint on a file of questions, and the blind baseline."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import mote  # noqa: F401  registers the transformers plug-in
from mote.checkpoint.atomic import new_directory
from mote.checkpoint.lineage import Provenance, file_hash, seal
from mote.checkpoint.shards import Checkpoint
from mote.data.conversation import Conversation, read_conversations
from mote.evaluate.blind import best, guess
from mote.evaluate.config import EvaluateConfig
from mote.evaluate.hf import HFScorer
from mote.evaluate.results import Answered, EvaluationResult, summarise
from mote.evaluate.scorer import EngineScorer, OpenScorer
from mote.evaluate.scoring import questions_of, score_questions, show, shown_questions
from mote.model.block import context_of
from mote.model.features import PictureFeatures
from mote.model.opening import open_model, open_processor
from mote.model.precision import device_of, widen

MAJORITY = "majority answer of the training split"
FEATURELESS = "the model without features"
QUESTION_ONLY = "a model trained without pictures"
PICTURES_PER_CALL = 32
"""Pictures that the vision tower sees at once."""


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path,
    config: EvaluateConfig | None = None,
    *,
    out: Path | None = None,
    features: Path | None = None,
    force: bool = False,
    progress: bool = True,
    open_scorer: OpenScorer | None = None,
) -> EvaluationResult:
    """Scores the model at `checkpoint` on the questions of the LLaVA-style file `data`.

    out: directory for result.json and the logs; None writes nothing. features: folder of the cache of vision
    features, shared between evaluations. open_scorer: opens the engine that a packed checkpoint is scored with on the
    CPU; without one, and for a model that it does not run, transformers scores. Raises CheckpointError or DataError for
    input that cannot be used.
    """
    config = config or EvaluateConfig()
    questions = questions_of(read_conversations(data), config.limit)
    source = Checkpoint.open(checkpoint)
    provenance = Provenance.start(
        "evaluate", config=config, seed=config.seed, parent=source, inputs={"data": file_hash(data)}
    )
    engine = None
    if open_scorer is not None and source.state == "packed" and device_of(config.device).type == "cpu":
        engine = open_scorer(
            checkpoint,
            features=features,
            blind=config.blind,
            batch_tokens=config.batch_tokens,
            precise=config.dtype == "float32",
        )
    if engine is not None:
        answered, shown, routing = _with_engine(engine, checkpoint, data, questions, config, progress)
    else:
        answered, shown, routing = _with_transformers(source, data, questions, config, features, progress)
    skills, average = summarise(answered, seed=config.seed)
    result = EvaluationResult(
        skills=skills,
        average=average,
        answered=answered,
        shown=shown,
        routing=routing,
        provenance={
            "checkpoint": source.identity(),
            "state": source.state,
            "scored_by": "transformers" if engine is None else "engine",
            **provenance.finish().to_dict(),
        },
    )
    if out is not None:
        _write(result, out, provenance, force=force)
    return result


Scored = tuple[list[Answered], list[Answered], list[dict[str, Any]]]
"""What was answered, what is shown, and where the tokens of a mixture went."""


def _with_engine(
    scorer: EngineScorer,
    checkpoint: Path,
    data: Path,
    questions: list[Conversation],
    config: EvaluateConfig,
    progress: bool,
) -> Scored:
    if not config.blind:
        _fill(scorer.fill, questions, progress)
    with _counted(_requests(questions, config), f"evaluating {checkpoint.name}", progress) as advance:
        scorer.progress = advance or scorer.progress
        answered = score_questions(scorer, questions, config, data.parent)
        routing = scorer.routing()
        scorer.progress = lambda done: None
    return answered, show(scorer, shown_questions(questions, config.samples), config, data.parent), routing


def _with_transformers(
    source: Checkpoint,
    data: Path,
    questions: list[Conversation],
    config: EvaluateConfig,
    features: Path | None,
    progress: bool,
) -> Scored:
    model, processor = load(source.root, config)
    seen = PictureFeatures(model, processor, features) if any(q.image for q in questions) else None
    if seen is not None and not config.blind:
        _fill(seen.fill, questions, progress)
    with _counted(_requests(questions, config), f"evaluating {source.root.name}", progress) as advance:
        scorer = HFScorer(
            model,
            processor,
            seen,
            blind=config.blind,
            batch_tokens=config.batch_tokens,
            precision=_precision(config),
            progress=advance,
        )
        routing = context_of(model).collect() if source.state != "dense" else nullcontext()
        with routing as collected:
            answered = score_questions(scorer, questions, config, data.parent)
    shown = show(scorer, shown_questions(questions, config.samples), config, data.parent)
    return answered, shown, _routing(collected)


def evaluate_blind(
    checkpoint: Path,
    data: Path,
    config: EvaluateConfig | None = None,
    *,
    question_only: Path | None = None,
    split: str = "test",
    out: Path | None = None,
    features: Path | None = None,
    force: bool = False,
    progress: bool = True,
) -> EvaluationResult:
    """What can be scored on a drawn mix (folder `data`) without pictures: for each skill the best of the majority
    answers of its training split, the model's own answers with the features zeroed, and those of `question_only`, a
    checkpoint that was trained on zeroed features, if there is one.
    """
    config = replace(config or EvaluateConfig(), blind=True, samples=0)
    provenance = Provenance.start("evaluate blind", config=config, seed=config.seed, parent=Checkpoint.open(checkpoint))
    file = data / f"{split}.jsonl"
    guessed = guess(read_conversations(data / "train.jsonl"), questions_of(read_conversations(file), config.limit))
    answers = {MAJORITY: guessed}
    for name, path in ((FEATURELESS, checkpoint), (QUESTION_ONLY, question_only)):
        if path is not None:
            own = evaluate_checkpoint(path, file, config, features=features, progress=progress)
            answers[name] = list(own.answered)
    scores = {name: summarise(rows, seed=config.seed)[0] for name, rows in answers.items()}
    winner = best(scores)
    answered = [answers[winner[row.skill]][index] for index, row in enumerate(guessed)]
    skills, average = summarise(answered, seed=config.seed)
    candidates = {name: {skill: score.value for skill, score in found.items()} for name, found in scores.items()}
    result = EvaluationResult(
        skills=skills,
        average=average,
        answered=answered,
        provenance={"guesser": winner, "candidates": candidates, **provenance.finish().to_dict()},
    )
    if out is not None:
        _write(result, out, provenance, force=force)
    return result


def load(checkpoint: Path, config: EvaluateConfig) -> tuple[Any, Any]:
    """Model in the dtype that computes, in eval mode on the settings' device, and its processor or tokenizer."""
    model = open_model(checkpoint).to(device_of(config.device)).eval()
    widen(model, _precision(config))
    return model, open_processor(checkpoint, model)


def _fill(fill: Callable[[list[Path]], None], questions: Sequence[Conversation], progress: bool) -> None:
    """Runs the vision tower on the pictures that the cache lacks."""
    pictures = list(dict.fromkeys(question.image for question in questions if question.image))
    with _counted(len(pictures), "vision features", progress) as advance:
        for start in range(0, len(pictures), PICTURES_PER_CALL):
            part = pictures[start : start + PICTURES_PER_CALL]
            fill(part)
            if advance is not None:
                advance(len(part))


def _precision(config: EvaluateConfig) -> Any:
    return {"auto": "auto", "bfloat16": "bf16", "float32": "fp32"}[config.dtype]


def _requests(questions: Sequence[Conversation], config: EvaluateConfig) -> int:
    return sum(len(q.choices) if q.metric == "multiple_choice" and q.choices else 1 for q in questions)


def _routing(collected: Any) -> list[dict[str, Any]]:
    if collected is None:
        return []
    return [
        {
            "layer": layer,
            "load_text": statistics.load_text,
            "load_image": statistics.load_image,
            "entropy": statistics.entropy,
            "mean_gate": statistics.mean_gate,
        }
        for layer, statistics in collected.statistics().items()
    ]


def _write(result: EvaluationResult, out: Path, provenance: Provenance, *, force: bool) -> None:
    with new_directory(out, force=force) as partial:
        result.write(partial)
        seal(partial, provenance)


@contextmanager
def _counted(total: int, title: str, progress: bool) -> Iterator[Any]:
    """A progress bar on stderr; yields what is called with the number of requests that were done."""
    if not progress:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)
