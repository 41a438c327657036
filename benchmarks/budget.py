"""Accuracy against the bytes of the feed-forward networks: ternary experts, fewer larger ones, dense; on real weights.

    python -m benchmarks.budget [--run runs/small] [--out-dir runs/budget] [--recipe recipes/small.yaml]
    python -m benchmarks.budget --method rtn --widths int4 int3 --keep
    python -m benchmarks.budget --families moe2 --widths int6 --keep
    python -m benchmarks.budget --draw

needs a finished pipeline in --run: its dense model (stage II), its data and its trained MoTE. The others are up-cycled
from the same dense model and trained like MoTE, by the recipe's stage III: MoE-LLaVA with 4, 3 and 2 full-precision
experts, the best two of a token renormalised. The dense model is not trained any further. Then each is quantised after
training to the widths of `budget_variants.py`, with zero points, by one method, and scored on the val split, since
methods and widths may be chosen by it. --keep adds to the rows of an earlier run, of another method say: what is
compared is then the best of each family. Steps that are done are not done again, so a run that was stopped goes on.
--draw: from the report, the picture docs/images/budget.svg and the tables of docs/explanation/budget.md.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.budget_page import PAGE, PICTURE, draw, filled
from benchmarks.budget_variants import BITS, FAMILIES, GROUP, choice, nominal_bits, sixteenths, variants
from benchmarks.report import processor, save

REPORT = Path(__file__).resolve().parents[1] / "studies" / "small-budget" / "report.json"
"""Among the studies, where `mote plan` finds it."""


def folder(name: str, width: str, method: str) -> str:
    """Where a variant lies."""
    return f"{name}/{width}" if width == "none" else f"{name}/{width}-{method}"


def steps(run: Path, experts: Any, method: str, seed: int, compared: Sequence[tuple[str, str]]) -> Iterator[Any]:
    """The table of steps: up-cycling and training of each family, then quantising and scoring of each of the `compared`
    (family, width)."""
    from mote.cli.steps import Step
    from mote.compress.quantize_config import QuantizeConfig
    from mote.evaluate import EvaluateConfig
    from mote.upcycle.config import preset

    given = {name: (run / name / "mote.json").read_text() for name in ("dense", "mote")}
    for name in dict.fromkeys(name for name, _ in compared):
        family = FAMILIES[name]
        if not family.experts:
            continue
        settings = preset("moe-llava", num_experts=family.experts, seed=seed)
        config = {"upcycle": asdict(settings), "parent": given["dense"]}
        title = f"up-cycling {family.title}"
        yield Step(name=f"{name}-upcycle", title=title, output=f"{name}/upcycled", config=config, seconds=5,
                   run=_upcycle(settings, run))  # fmt: skip
        yield Step(name=f"{name}-train", title=f"training {family.title}", output=f"{name}/trained", config=experts,
                   parents=(f"{name}-upcycle",), seconds=240, run=_train(experts, run, f"{name}-upcycle"))  # fmt: skip
    for name, width in compared:
        family, at = FAMILIES[name], folder(name, width, method)
        base = (f"{name}-train",) if family.experts else ()
        parent = {} if base else {"parent": given[name]}
        scored, step = base, at.replace("/", "-")
        if width != "none" or name == "mote":
            asked: Any = {"shared": "none", family.part: width}
            chosen: Any = method if width != "none" else "rtn"
            config_q = QuantizeConfig(**asked, group=GROUP, method=chosen, symmetric=width == "none", seed=seed)
            yield Step(name=step, title=f"quantising {family.title}, {width}", output=at,
                       config={"quantize": asdict(config_q), **parent}, parents=base, seconds=20,
                       run=_quantize(config_q, run, name, base))  # fmt: skip
            scored = (step,)
        config_e = EvaluateConfig(samples=0, seed=seed)
        yield Step(name=f"{step}-score", title=f"scoring {family.title}, {width}", output=f"{at}-score",
                   config={"evaluate": asdict(config_e), **parent}, parents=scored, seconds=45,
                   run=_score(config_e, run, name, scored))  # fmt: skip


def _upcycle(settings: Any, run: Path) -> Any:
    def step(at: Any) -> None:
        from mote.upcycle.stream import upcycle_checkpoint

        upcycle_checkpoint(run / "dense", at.out, settings, force=at.force)

    return step


def _train(config: Any, run: Path, parent: str) -> Any:
    def step(at: Any) -> None:
        from mote.train.run import train

        kept = {"work": at.work, "features": run / ".features", "force": at.force}
        train(at.parents[parent], at.out, config, stage="experts", data=run / "data", **kept)

    return step


def _quantize(config: Any, run: Path, name: str, base: Sequence[str]) -> Any:
    def step(at: Any) -> None:
        from mote.compress.quantize import quantize_checkpoint

        source = at.parents[base[0]] if base else run / name
        data = run / "data" if config.calibrated else None
        quantize_checkpoint(source, at.out, config, calibration=data, force=at.force)

    return step


def _score(config: Any, run: Path, name: str, scored: Sequence[str]) -> Any:
    def step(at: Any) -> None:
        from mote.cli.scoring import open_scorer
        from mote.evaluate.run import evaluate_checkpoint

        source, data = (at.parents[scored[0]] if scored else run / name), run / "data" / "val.jsonl"
        kept = {"features": run / ".features", "force": at.force}
        evaluate_checkpoint(source, data, config, out=at.out, open_scorer=open_scorer, **kept)

    return step


def stored_ffn_bytes(checkpoint: Path) -> int:
    """True bytes of the feed-forward networks; floats that a training run keeps in fp32 count as the BF16 they ship
    in, routers and scales as they are."""
    from mote.checkpoint.accounting import true_ffn_bytes
    from mote.checkpoint.layout import VISION
    from mote.checkpoint.shards import Checkpoint

    tensors = Checkpoint.open(checkpoint).tensors.values()
    wide = [t for t in tensors if t.dtype == "F32" and ".mlp." in t.name and not VISION.search(t.name)]
    matrices = [t for t in wide if t.name.endswith(("_proj", "_proj.weight"))]
    return true_ffn_bytes(tensors) - sum(t.nbytes // 2 for t in matrices)


def rows(run: Path, out: Path, method: str, compared: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row for each of the `compared` variants that has been scored."""
    found = []
    for name, width in compared:
        family, packed = FAMILIES[name], out / folder(name, width, method)
        result = packed.with_name(f"{packed.name}-score") / "result.json"
        if not result.exists():
            continue
        scores = json.loads(result.read_text())
        by, environment = scores["provenance"], scores["provenance"]["environment"]
        weights = packed if packed.exists() else out / name / "trained" if family.experts else run / name
        found.append({
            **{"what": "accuracy", "family": name, "title": family.title, "width": width, "group": GROUP},
            "method": method if width != "none" else "none",
            "nominal_bits": nominal_bits(name, width),
            "choice": choice(name, width),
            "sixteenths": round(sixteenths(name, width), 3),
            "ffn_bytes": stored_ffn_bytes(weights),
            "skills": scores["skills"],
            "average": scores["average"],
            "measured": {
                "date": by["started"][:10],
                "git": environment["git"],
                "cpu": processor(environment["cpu"]),
            },
        })  # fmt: skip
    return found


def in_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Family by family, from wide to narrow."""
    families, widths = list(FAMILIES), list(BITS)
    return sorted(rows, key=lambda row: (families.index(row["family"]), widths.index(row["width"]), row["method"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/small"))
    parser.add_argument("--out-dir", type=Path, default=Path("runs/budget"))
    parser.add_argument("--recipe", type=Path, default=Path("recipes/small.yaml"))
    parser.add_argument("--method", default="hqq", choices=("rtn", "hqq", "gptq"))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--widths", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--keep", action="store_true", help="keep the other rows of --out")
    parser.add_argument("--out", type=Path, default=REPORT)
    parser.add_argument("--draw", action="store_true", help="only the picture and the page, from the report")
    a = parser.parse_args()
    if not a.draw:
        from mote.cli.experiment import read_experiment
        from mote.cli.steps import run_steps

        e = read_experiment(a.recipe)
        run = a.run.absolute()
        compared = list(variants(a.families, a.widths))
        run_steps(a.out_dir, list(steps(run, e.experts, a.method, e.seed, compared)))
        kept = json.loads(a.out.read_text())["rows"] if a.keep else []
        measured = [*kept, *rows(run, a.out_dir, a.method, compared)]  # the later of two alike stays
        found = {(row["family"], row["width"], row["method"]): row for row in measured}
        packed = sum(path.stat().st_size for path in (run / "packed").glob("*.safetensors"))
        settings = {"recipe": a.recipe.name, "split": "val", "seed": e.seed, "packed_bytes": packed}
        save(a.out, {}, in_order(list(found.values())), settings=settings)
    report = json.loads(a.out.read_text())
    draw(report, PICTURE)
    PAGE.write_text(filled(PAGE.read_text(), report))
    print(PAGE, PICTURE)


if __name__ == "__main__":
    main()
