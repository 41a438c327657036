"""Accuracy against the bytes of the feed-forward networks: ternary experts, fewer larger ones, dense; on real weights.

    python -m benchmarks.budget [--run runs/small] [--out-dir runs/budget] [--recipe recipes/small.yaml]
    python -m benchmarks.budget --method rtn --widths int4 int3 --keep
    python -m benchmarks.budget --draw

needs a finished pipeline in --run: its dense model (stage II), its data and its trained MoTE. The others are up-cycled
from the same dense model and trained like MoTE, by the recipe's stage III: MoE-LLaVA with 4, 3 and 2 full-precision
experts, the best two of a token renormalised. The dense model is not trained any further. Then each is quantised after
training to the widths of `VARIANTS`, with zero points, by one method, and scored on the val split, since methods and
widths may be chosen by it. --keep adds to the rows of an earlier run, of another method say: what is compared is then
the best of each family. Steps that are done are not done again, so a run that was stopped goes on. --draw: from the
report, the picture docs/images/budget.svg and the tables of docs/explanation/budget.md.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, save

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURE = ROOT / "docs/explanation/budget.md", ROOT / "docs/images/budget.svg"
BEGIN, END = "<!-- budget: filled by python -m benchmarks.budget --draw -->", "<!-- end of budget -->"
GROUP = 64
BUDGETS = (2, 3, 4, 6, 8)
"""Sixteenths of MoE-LLaVA's four experts in BF16. In the paper's accounting 3 are its 3.4 GB at 3B, 6 its 6.8 GB."""
STYLE = {
    "mote": ("#2f81f7", (4, 8)),
    "moe4": ("#d29922", (5, -13)),
    "moe3": ("#b5541c", (-30, -12)),
    "moe2": ("#8250df", (6, 6)),
    "dense": ("#57606a", (-26, -18)),
}
"""Colour of a family, and where its labels stand."""
BROKEN = 50.0
"""Percent below which the picture has an axis of its own: two of the skills are then gone."""
BITS = {"none": 16.0, "int8": 8.0, "int6": 6.0, "int4": 4.0, "int3": 3.0, "int2": 2.0}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is trained. experts: of MoE-LLaVA, 0 for none. part: what is quantised after training.

    fixed, copies: bits a weight of the dense network that stay as they are, and how many copies of it are quantised.
    """

    title: str
    part: str
    copies: int
    fixed: float = 0.0
    experts: int = 0


FAMILIES = {
    "mote": Family(title="MoTE: shared + 4 ternary", part="shared", copies=1, fixed=4 * 1.6),
    "moe4": Family(title="MoE-LLaVA, 4 experts", part="experts", copies=4, experts=4),
    "moe3": Family(title="MoE-LLaVA, 3 experts", part="experts", copies=3, experts=3),
    "moe2": Family(title="MoE-LLaVA, 2 experts", part="experts", copies=2, experts=2),
    "dense": Family(title="dense", part="shared", copies=1),
}
VARIANTS = {
    "mote": ("none", "int8", "int4", "int3", "int2"),
    "moe4": ("none", "int6", "int4", "int3", "int2"),
    "moe3": ("int8", "int4", "int3"),
    "moe2": ("none", "int8", "int4"),
    "dense": ("none", "int8", "int4", "int3", "int2"),
}


def nominal_bits(family: str, width: str) -> float:
    """Bits per weight of the dense network, all copies together, in the paper's accounting: no scales, no routers."""
    f = FAMILIES[family]
    return f.fixed + f.copies * BITS[width]


def sixteenths(family: str, width: str) -> float:
    """The same in sixteenths of MoE-LLaVA's four experts in BF16."""
    return 16 * nominal_bits(family, width) / (4 * BITS["none"])


def variants(widths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(family, width) of each variant that was asked for."""
    return ((name, width) for name, all_widths in VARIANTS.items() for width in all_widths if width in widths)


def folder(name: str, width: str, method: str) -> str:
    """Where a variant lies."""
    return f"{name}/{width}" if width == "none" else f"{name}/{width}-{method}"


def steps(run: Path, experts: Any, method: str, seed: int, widths: Sequence[str]) -> Iterator[Any]:
    """The table of steps: up-cycling and training of each family, then quantising and scoring of each variant."""
    from mote.cli.steps import Step
    from mote.compress.quantize_config import QuantizeConfig
    from mote.evaluate import EvaluateConfig
    from mote.upcycle.config import preset

    given = {name: (run / name / "mote.json").read_text() for name in ("dense", "mote")}
    for name, family in FAMILIES.items():
        if not family.experts:
            continue
        settings = preset("moe-llava", num_experts=family.experts, seed=seed)
        config = {"upcycle": asdict(settings), "parent": given["dense"]}
        title = f"up-cycling {family.title}"
        yield Step(name=f"{name}-upcycle", title=title, output=f"{name}/upcycled", config=config, seconds=5,
                   run=_upcycle(settings, run))  # fmt: skip
        yield Step(name=f"{name}-train", title=f"training {family.title}", output=f"{name}/trained", config=experts,
                   parents=(f"{name}-upcycle",), seconds=240, run=_train(experts, run, f"{name}-upcycle"))  # fmt: skip
    for name, width in variants(widths):
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


def rows(run: Path, out: Path, method: str, widths: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each variant that has been scored."""
    found = []
    for name, width in variants(widths):
        family, packed = FAMILIES[name], out / folder(name, width, method)
        result = packed.with_name(f"{packed.name}-score") / "result.json"
        if not result.exists():
            continue
        scores = json.loads(result.read_text())
        weights = packed if packed.exists() else out / name / "trained" if family.experts else run / name
        found.append({
            **{"what": "accuracy", "family": name, "title": family.title, "width": width, "group": GROUP},
            "method": method if width != "none" else "none",
            "nominal_bits": nominal_bits(name, width),
            "sixteenths": round(sixteenths(name, width), 3),
            "ffn_bytes": stored_ffn_bytes(weights),
            "skills": scores["skills"],
            "average": scores["average"],
        })  # fmt: skip
    return found


def in_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Family by family, from wide to narrow."""
    families, widths = list(FAMILIES), list(BITS)
    return sorted(rows, key=lambda row: (families.index(row["family"]), widths.index(row["width"]), row["method"]))


def best_methods(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each variant the row of the method that scores best on average."""
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        key = row["family"], row["width"]
        if key not in best or row["average"]["value"] > best[key]["average"]["value"]:
            best[key] = row
    return list(best.values())


def precision(row: Mapping[str, Any]) -> str:
    """BF16, or INT4 and the method that made it."""
    return "BF16" if row["width"] == "none" else f"{row['width'].upper()} {row['method'].upper()}"


def best_within(rows: Sequence[Mapping[str, Any]], budget: float) -> list[Mapping[str, Any]]:
    """Of each family that has any, the best on average of the variants within `budget` sixteenths."""
    found = []
    for name in FAMILIES:
        fitting = [row for row in rows if row["family"] == name and row["sixteenths"] <= budget + 1e-6]
        if fitting:
            found.append(max(fitting, key=lambda row: row["average"]["value"]))
    return found


def tables(report: Mapping[str, Any]) -> str:
    """The page's tables, as Markdown."""
    rows = report["rows"]
    skills = list(rows[0]["skills"])

    def line(row: Mapping[str, Any]) -> str:
        scores = " | ".join(f"{100 * row['skills'][s]['value']:.1f}" for s in skills)
        average = row["average"]
        interval = f"{100 * average['value']:.1f} ({100 * average['low']:.1f} to {100 * average['high']:.1f})"
        start = f"| {row['title']} | {precision(row)} | {row['sixteenths']:.2f}/16 | {row['ffn_bytes']:,}"
        return f"{start} | {scores} | {interval} |"

    head = f"| model | after training | paper's accounting | true bytes | {' | '.join(skills)} | average (95%) |"
    rule = "|---|---|---:|---:|" + "---:|" * len(skills) + "---|"
    parts = ["Every variant:", "", head, rule, *map(line, rows)]
    for budget in BUDGETS:
        within = best_within(rows, budget)
        note = {3: ", as the paper's 3.4 GB at 3B", 6: ", as its 6.8 GB"}.get(budget, "")
        parts += ["", f"The best of each within {budget}/16 of four BF16 experts{note}:", "", head, rule]
        parts += map(line, sorted(within, key=lambda row: -row["average"]["value"]))
    return "\n".join(parts)


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Average accuracy over true bytes, a line a family, with the intervals."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    from benchmarks.plot import INK

    pyplot.rcParams.update({"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK})
    pyplot.rcParams.update({"axes.edgecolor": INK, "font.size": 10, "svg.hashsalt": "mote"})
    # What broke lies far below all else: an axis of its own keeps the rest apart.
    figure, axes = pyplot.subplots(2, 1, figsize=(8.4, 5.6), sharex=True, height_ratios=(6, 1))
    best = best_methods(report["rows"])
    for name, family in FAMILIES.items():
        points = sorted((r for r in best if r["family"] == name), key=lambda r: r["ffn_bytes"])
        x = [row["ffn_bytes"] / 1e6 for row in points]
        y = [100 * row["average"]["value"] for row in points]
        below = [100 * (row["average"]["value"] - row["average"]["low"]) for row in points]
        above = [100 * (row["average"]["high"] - row["average"]["value"]) for row in points]
        colour, offset = STYLE[name]
        for axis in axes:
            axis.errorbar(
                *(x, y, (below, above)), marker="o", capsize=3, label=family.title, color=colour, elinewidth=0.8
            )
            for row, at, value in zip(points, x, y, strict=True):
                width = {"none": "BF16"}.get(row["width"], row["width"].upper())
                axis.annotate(
                    *(width, (at, value), offset),
                    textcoords="offset points",
                    fontsize=8,
                    color=colour,
                    annotation_clip=True,
                )
            axis.set_xscale("log")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(*_limits(best, broken=False))
    axes[0].spines["bottom"].set_visible(False)
    axes[0].tick_params(bottom=False, which="both")
    axes[1].set_ylim(*_limits(best, broken=True))
    cut = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 8, "color": INK, "clip_on": False}
    axes[0].plot(0, 0, transform=axes[0].transAxes, **cut)
    axes[1].plot(0, 1, transform=axes[1].transAxes, **cut)
    ticks = [25, 50, 100, 200, 400, 800]
    axes[1].set_xticks(ticks, map(str, ticks))
    axes[1].minorticks_off()
    axes[1].set_xlim(left=0.7 * min(row["ffn_bytes"] for row in best) / 1e6)
    axes[1].set_xlabel("feed-forward networks as stored, MB, scales and routers included")
    axes[0].set_ylabel("average of the skills, val split, percent")
    axes[0].legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def _limits(rows: Sequence[Mapping[str, Any]], *, broken: bool) -> tuple[float, float]:
    """Percent from and to, of an axis that shows every row on one side of `BROKEN`, whiskers included."""
    shown = [row["average"] for row in rows if (100 * row["average"]["value"] < BROKEN) == broken]
    ends = [100 * average[end] for average in shown for end in ("low", "high")] or [0.0]
    return min(ends) - 3, max(ends) + 3


def filled(page: str, report: Mapping[str, Any]) -> str:
    """The page with the report's tables."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables(report)}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/small"))
    parser.add_argument("--out-dir", type=Path, default=Path("runs/budget"))
    parser.add_argument("--recipe", type=Path, default=Path("recipes/small.yaml"))
    parser.add_argument("--method", default="hqq", choices=("rtn", "hqq", "gptq"))
    parser.add_argument("--widths", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--keep", action="store_true", help="keep the other rows of --out")
    parser.add_argument("--out", type=Path, default=RESULTS / "budget.json")
    parser.add_argument("--draw", action="store_true", help="only the picture and the page, from the report")
    a = parser.parse_args()
    if not a.draw:
        from mote.cli.experiment import read_experiment
        from mote.cli.steps import run_steps

        e = read_experiment(a.recipe)
        run = a.run.absolute()
        run_steps(a.out_dir, list(steps(run, e.experts, a.method, e.seed, a.widths)))
        kept = json.loads(a.out.read_text())["rows"] if a.keep else []
        measured = [*kept, *rows(run, a.out_dir, a.method, a.widths)]  # the later of two alike stays
        found = {(row["family"], row["width"], row["method"]): row for row in measured}
        settings = {"recipe": a.recipe.name, "split": "val", "seed": e.seed}
        save(a.out, {}, in_order(list(found.values())), settings=settings)
    report = json.loads(a.out.read_text())
    draw(report, PICTURE)
    PAGE.write_text(filled(PAGE.read_text(), report))
    print(PAGE, PICTURE)


if __name__ == "__main__":
    main()
