"""A whole experiment: the sections of a recipe, each the config of its stage, and the table of steps they
make.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mote.assemble.config import AssembleConfig, ExtractConfig, StartConfig
from mote.checkpoint.lineage import file_hash
from mote.cli.progress import counted_bytes
from mote.cli.steps import Place, Step
from mote.compress.config import PackConfig
from mote.data.draw import MixConfig
from mote.errors import RecipeError
from mote.evaluate import EvaluateConfig
from mote.recipe import from_plain, override, read_recipe
from mote.study.config import ReportConfig
from mote.train.config import StageName, TrainConfig
from mote.upcycle.config import UpcycleConfig

FEATURES = ".features"
"""Folder of a run that holds the vision tower's features of every picture; all steps share it."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A recipe. Every section is the config of the stage of that name; see `docs/reference/recipe.md`.

    question_only: also train a model as long as stage II on zeroed features, as a third blind guesser.
    start: take what stages I and II learned from a file instead of running `align`; with it, `instruct` runs only if
        the recipe has that section, and goes on from there.
    extract: also keep what stages I and II learned as such a file.
    name, note: shown in the report. seed: of every section that has a seed and does not set its own.
    seconds: step -> what it takes on the machine that the recipe was written for; only for the estimate of
    the time left.
    """

    name: str
    data: MixConfig
    assemble: AssembleConfig
    note: str = ""
    question_only: bool = False
    seed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    start: StartConfig | None = None
    align: TrainConfig = field(default_factory=TrainConfig)
    instruct: TrainConfig | None = field(default_factory=TrainConfig)
    extract: ExtractConfig | None = None
    upcycle: UpcycleConfig = field(default_factory=UpcycleConfig)
    experts: TrainConfig = field(default_factory=TrainConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


Row = tuple[str, str, str, Any, tuple[str, ...], Callable[[Any, Place], None]]
"""Name of a step, title, output under the run's directory, settings, parents, and what runs."""


def read_experiment(path: Path, settings: Sequence[str] = (), seed: int | None = None) -> Experiment:
    """The recipe at `path` changed by `settings` ("section.key=value"). Raises RecipeError."""
    plain = override(read_recipe(path), settings)
    if seed is not None:
        plain["seed"] = seed
    _check_start(path, plain)
    started_only = plain.get("start") is not None and plain.get("instruct") is None
    common = plain.get("seed", 0)
    for name, hint in get_type_hints(Experiment).items():
        seeded = any(
            item.name == "seed" for part in (hint, *get_args(hint)) if is_dataclass(part) for item in fields(part)
        )
        if seeded and isinstance(plain.get(name, {}), dict | None):
            plain[name] = {"seed": common, **(plain.get(name) or {})}
    if started_only:
        plain["instruct"] = None
    return from_plain(Experiment, plain)


def _check_start(path: Path, plain: Mapping[str, Any]) -> None:
    """Raises RecipeError for what a recipe asks of stages that its `start` takes the place of."""
    if plain.get("start") is None:
        return
    needing = ("align",) if plain.get("instruct") is not None else ("align", "extract", "question_only")
    idle = [name for name in needing if plain.get(name) not in (None, False)]
    if idle:
        raise RecipeError(
            f"{path}: start takes the place of stage I, and of stage II without an instruct section, so "
            f"{' and '.join(idle)} would do nothing; leave out either (--set start=null trains the stages)"
        )


def steps_of(experiment: Experiment, recipe: Path, command: str) -> list[Step]:
    """The experiment as the ordered table of its steps. `recipe` and `command` are named in the report."""
    e = experiment
    learned, dense, guesser = _dense_steps(e)
    table: tuple[Row, ...] = (
        ("data", "drawing pictures and questions", "data", e.data, (), _draw),
        ("assemble", "assembling the dense model", "assembled", e.assemble, (), _assemble),
        *learned,
        ("upcycle", "copying the FFNs into routed experts", "upcycled", e.upcycle, (dense,), _upcycle),
        ("experts", "stage III: training routers and routed experts", "mote", e.experts, ("upcycle", "data"),
         _train("experts")),
        ("pack", "packing the experts", "packed", e.pack, ("experts",), _pack),
        # The packed model is the one that ships, so it gives the report's samples.
        *((f"evaluate_{name}", f"evaluating {name} on the test split", f"evaluation/{name}",
           e.evaluate if name == "packed" else replace(e.evaluate, samples=0), (parent, "data"), _evaluate)
          for name, parent in (("dense", dense), ("mote", "experts"), ("packed", "pack"))),
        *guesser,
        ("evaluate_blind", "evaluating without pictures", "evaluation/blind", e.evaluate,
         (dense, "data", *(row[0] for row in guesser)), _blind),
    )  # fmt: skip
    steps = [
        Step(name=name, title=title, output=output, config=config, parents=parents, run=partial(action, config))
        for name, title, output, config, parents, action in table
    ]
    source = {"name": e.name, "note": e.note, "recipe": recipe.name, "command": command, "seed": e.seed}
    everything = tuple(step.name for step in steps)
    steps.append(
        Step(
            name="report",
            title="writing the report",
            output="report.json",
            config=e.report,
            parents=everything,
            run=partial(_report, e.report, source),
        )
    )
    return [replace(step, seconds=e.seconds.get(step.name, 0.0)) for step in steps]


def _dense_steps(e: Experiment) -> tuple[list[Row], str, list[Row]]:
    """The rows between the assembled and the dense model, the name of the one that writes the latter, and the
    question-only model's."""
    if e.start is None:
        first: Row = ("align", "stage I: training the connector", "aligned", e.align, ("assemble", "data"),
                      _train("align"))  # fmt: skip
    else:
        # The file's own hash, so that another file under the same name is another setting.
        config = replace(e.start, sha256=e.start.sha256 or file_hash(e.start.file()))
        title = "taking from a file what stages I and II learned"
        first = ("start", title, "started" if e.instruct else "dense", config, ("assemble",), _start)
    if e.instruct is None:
        return [first], first[0], []
    rows: list[Row] = [
        first,
        ("instruct", "stage II: training connector and language model", "dense", e.instruct, (first[0], "data"),
         _train("instruct")),
    ]  # fmt: skip
    if e.extract is not None:
        title = "keeping what stages I and II learned in a file"
        rows.append(("extract", title, "start.safetensors", e.extract, ("assemble", "instruct"), _extract))
    guesser: list[Row] = []
    if e.question_only:
        title, config_blind = "stage II again, without pictures", replace(e.instruct, blind=True)
        guesser.append(("question_only", title, "question_only", config_blind, (first[0], "data"), _train("instruct")))
    return rows, "instruct", guesser


# Stages are imported when they run: a recipe with a mistake is refused before torch is loaded.


def _draw(config: MixConfig, at: Place) -> None:
    from mote.data.draw import draw

    draw(config, at.out)


def _assemble(config: AssembleConfig, at: Place) -> None:
    from mote.assemble import assemble

    assemble(at.out, config, force=at.force)


def _train(stage: StageName) -> Callable[[Any, Place], None]:
    def run(config: TrainConfig, at: Place) -> None:
        from mote.train.run import train

        parent = at.parents[next(name for name in at.parents if name != "data")]
        data, seen = at.parents["data"], at.root / FEATURES
        train(parent, at.out, config, stage=stage, data=data, work=at.work, features=seen, force=at.force)

    return run


def _start(config: StartConfig, at: Place) -> None:
    from mote.assemble import apply_start

    with counted_bytes("starting") as progress:
        apply_start(at.parents["assemble"], at.out, config, force=at.force, progress=progress)


def _extract(config: ExtractConfig, at: Place) -> None:
    from mote.assemble import extract_start

    with counted_bytes("comparing") as progress:
        extract_start(at.parents["assemble"], at.parents["instruct"], at.out, config, force=at.force, progress=progress)


def _upcycle(config: UpcycleConfig, at: Place) -> None:
    from mote.upcycle.stream import upcycle_checkpoint

    with counted_bytes("up-cycling") as progress:
        upcycle_checkpoint(_dense(at), at.out, config, force=at.force, progress=progress)


def _pack(config: PackConfig, at: Place) -> None:
    from mote.compress.stream import pack_checkpoint

    with counted_bytes("packing") as progress:
        pack_checkpoint(at.parents["experts"], at.out, config, force=at.force, progress=progress)


def _evaluate(config: EvaluateConfig, at: Place) -> None:
    from mote.cli.scoring import open_scorer
    from mote.evaluate.run import evaluate_checkpoint

    checkpoint = at.parents[next(name for name in at.parents if name != "data")]
    data, seen = at.parents["data"] / "test.jsonl", at.root / FEATURES
    evaluate_checkpoint(checkpoint, data, config, out=at.out, features=seen, force=at.force, open_scorer=open_scorer)


def _blind(config: EvaluateConfig, at: Place) -> None:
    from mote.evaluate.run import evaluate_blind

    evaluate_blind(
        _dense(at),
        at.parents["data"],
        config,
        question_only=at.parents.get("question_only"),
        out=at.out,
        features=at.root / FEATURES,
        force=at.force,
    )


def _dense(at: Place) -> Path:
    """The dense model that the step starts from, trained here or taken from a file."""
    return at.parents["instruct" if "instruct" in at.parents else "start"]


def _report(config: ReportConfig, source: Mapping[str, Any], at: Place) -> None:
    from mote.study.report import write_report

    write_report(at.parents, at.out.parent, config, seconds=at.seconds, source=source)
