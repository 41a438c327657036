"""A whole experiment: the sections of a recipe, each the config of its stage, and the table of steps they
make.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

from mote.assemble import AssembleConfig, assemble
from mote.cli.steps import Place, Step
from mote.compress.config import PackConfig
from mote.compress.stream import pack_checkpoint
from mote.data.draw import MixConfig, draw
from mote.evaluate import EvaluateConfig
from mote.evaluate.run import evaluate_blind, evaluate_checkpoint
from mote.recipe import from_plain, override, read_recipe
from mote.study.report import ReportConfig, write_report
from mote.train import StageName, TrainConfig
from mote.train.run import train
from mote.upcycle.config import UpcycleConfig
from mote.upcycle.stream import upcycle_checkpoint

FEATURES = ".features"
"""Folder of a run that holds the vision tower's features of every picture; all steps share it."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A recipe. Every section is the config of the stage of that name; see `docs/reference/recipe.md`.

    name, note: shown in the report. seed: of every section that has a seed and does not set its own.
    seconds: step -> what it takes on the machine that the recipe was written for; only for the estimate of
    the time left.
    """

    name: str
    data: MixConfig
    assemble: AssembleConfig
    note: str = ""
    seed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    align: TrainConfig = field(default_factory=TrainConfig)
    instruct: TrainConfig = field(default_factory=TrainConfig)
    upcycle: UpcycleConfig = field(default_factory=UpcycleConfig)
    experts: TrainConfig = field(default_factory=TrainConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


def read_experiment(path: Path, settings: Sequence[str] = (), seed: int | None = None) -> Experiment:
    """The recipe at `path` changed by `settings` ("section.key=value"). Raises RecipeError."""
    plain = override(read_recipe(path), settings)
    if seed is not None:
        plain["seed"] = seed
    common = plain.get("seed", 0)
    for name, hint in get_type_hints(Experiment).items():
        seeded = is_dataclass(hint) and any(item.name == "seed" for item in fields(hint))
        if seeded and isinstance(plain.get(name, {}), dict | None):
            plain[name] = {"seed": common, **(plain.get(name) or {})}
    return from_plain(Experiment, plain)


def steps_of(experiment: Experiment, recipe: Path, command: str) -> list[Step]:
    """The experiment as the ordered table of its steps. `recipe` and `command` are named in the report."""
    e = experiment
    stages = [
        Step(name="data", title="drawing pictures and questions", output="data", config=e.data,
             run=lambda at: draw(e.data, at.out)),
        Step(name="assemble", title="assembling the dense model", output="assembled", config=e.assemble,
             run=lambda at: assemble(at.out, e.assemble, force=at.force)),
        _training("align", "stage I: training the connector", "aligned", e.align, after="assemble"),
        _training("instruct", "stage II: training connector and language model", "dense", e.instruct,
        after="align"), Step(name="upcycle", title="copying the FFNs into routed experts",
        output="upcycled", config=e.upcycle,
             parents=("instruct",),
             run=lambda at: upcycle_checkpoint(at.parents["instruct"], at.out, e.upcycle, force=at.force)),
        _training("experts", "stage III: training routers and routed experts", "mote", e.experts,
        after="upcycle"), Step(name="pack", title="packing the experts", output="packed", config=e.pack,
        parents=("experts",),
             run=lambda at: pack_checkpoint(at.parents["experts"], at.out, e.pack, force=at.force)),
    ]  # fmt: skip
    scores = [
        _evaluation("dense", e.evaluate, of="instruct"),
        _evaluation("mote", e.evaluate, of="experts"),
        _evaluation("packed", e.evaluate, of="pack"),
        Step(name="evaluate_blind", title="evaluating without pictures", output="evaluation/blind",
             config=e.evaluate, parents=("instruct", "data"),
             run=lambda at: evaluate_blind(at.parents["instruct"], at.parents["data"], e.evaluate, out=at.out,
                                           features=at.root / FEATURES, force=at.force)),
    ]  # fmt: skip

    def report(at: Place) -> None:
        source = {"name": e.name, "note": e.note, "recipe": recipe.name, "command": command, "seed": e.seed}
        write_report(at.parents, at.out.parent, e.report, seconds=at.seconds, source=source)

    last = Step(name="report", title="writing the report", output="report.json", config=e.report, run=report,
                parents=tuple(step.name for step in (*stages, *scores)))  # fmt: skip
    return [replace(step, seconds=e.seconds.get(step.name, 0.0)) for step in (*stages, *scores, last)]


def _training(stage: StageName, title: str, output: str, config: TrainConfig, *, after: str) -> Step:
    def run(at: Place) -> None:
        parent, data = at.parents[after], at.parents["data"]
        seen = at.root / FEATURES
        train(parent, at.out, config, stage=stage, data=data, work=at.work, features=seen, force=at.force)

    return Step(name=stage, title=title, output=output, config=config, parents=(after, "data"), run=run)


def _evaluation(name: str, config: EvaluateConfig, *, of: str) -> Step:
    """Scores on the test split; the packed model, being the one that ships, also gives the report's
    samples.
    """
    config = config if name == "packed" else replace(config, samples=0)

    def run(at: Place) -> None:
        data, seen = at.parents["data"] / "test.jsonl", at.root / FEATURES
        evaluate_checkpoint(at.parents[of], data, config, out=at.out, features=seen, force=at.force)

    return Step(name=f"evaluate_{name}", title=f"evaluating {name} on the test split",
    output=f"evaluation/{name}",
                config=config, parents=(of, "data"), run=run)  # fmt: skip
