"""The report of a run: `report.json` for programs, `report.html` for people, from what the steps left on disk.

report.json holds

    accuracy.{blind,dense,mote,packed}.{skill|average}.{value,n,low,high}   0 to 1, 95% intervals
    bytes.{dense_ffn,moe_llava_experts,mote_experts,mote_experts_packed,checkpoint}
    seconds.{step}
    provenance

`bytes` counts the layers that hold a mixture: `dense_ffn` their feed-forward networks in bf16; `moe_llava_experts`
as many bf16 copies of these as there are routed experts; `mote_experts` the shared expert and the routed experts in
bf16, before packing; `mote_experts_packed` what the packed checkpoint truly holds for them, shared expert, padding,
scales and routers included. `checkpoint` is the packed checkpoint's weight files. Only the first three are computed
from shapes.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mote.checkpoint.accounting import describe
from mote.checkpoint.atomic import write_file
from mote.checkpoint.environment import record_environment
from mote.checkpoint.shards import Checkpoint
from mote.errors import DataError
from mote.study import figures
from mote.study.config import ReportConfig
from mote.study.page import card, definitions, facts, figure, page, table, text

SERIES = ("blind", "dense", "mote", "packed")
STAGES = ("align", "instruct", "experts")


def write_report(
    outputs: Mapping[str, Path],
    out: Path,
    config: ReportConfig | None = None,
    *,
    seconds: Mapping[str, float],
    source: Mapping[str, Any],
) -> Path:
    """Writes `report.json` and `report.html` into `out` and returns the latter.

    outputs: by step name: data, align, instruct (or start in place of the first or both), experts, pack,
    evaluate_{blind,dense,mote,packed}. seconds: by step.
    source: {"name", "note", "recipe", "command", "seed"} of the run, for the provenance. Raises DataError when the log
    of a step is missing or damaged.
    """
    config = config or ReportConfig()
    results = {name: _json(outputs[f"evaluate_{name}"] / "result.json") for name in SERIES}
    packed = Checkpoint.open(outputs["pack"])
    report = {
        "accuracy": {name: _scores(result) for name, result in results.items()},
        "bytes": _bytes(describe(packed)),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "provenance": _provenance(outputs, results, packed, source),
    }
    title = config.title or f"{source['name']}: a mixture of ternary experts"
    parts = [
        *_opening(title, report, source, results),
        *_accuracy(report, results),
        *_sizes(report),
        *_training(outputs, report),
        *_routing(results["packed"]),
        *_samples(outputs, config),
        *_origin(report, source, out),
    ]
    write_file(out / "report.html", page(title, parts))
    write_file(out / "report.json", json.dumps(report, indent=2, sort_keys=True) + "\n")
    return out / "report.html"


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be used for the report ({error}); run the pipeline again") from None


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL log, none if there is no such file."""
    if not path.is_file():
        return []
    try:
        return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be used for the report ({error}); run the pipeline again") from None


def _scores(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    rows = {**result["skills"], "average": result["average"]}
    return {name: {key: row[key] for key in ("value", "n", "low", "high")} for name, row in rows.items()}


def _bytes(described: Mapping[str, Any]) -> dict[str, int]:
    mixture, true = described["mixture"], described["true_bytes"]
    ffn = int(mixture["same_layers_bytes"]["dense_ffn_bf16"])
    copies = int(mixture["num_experts"])
    components = ("shared_experts", "routed_experts", "scales", "routers")
    return {
        "dense_ffn": ffn,
        "moe_llava_experts": int(mixture["same_layers_bytes"]["moe_llava_experts_bf16"]),
        "mote_experts": ffn * (copies + bool(mixture["shared_expert"])),
        "mote_experts_packed": sum(int(true[name]) for name in components),
        "checkpoint": int(true["files"]),
    }


def _provenance(
    outputs: Mapping[str, Path], results: Mapping[str, Any], packed: Checkpoint, source: Mapping[str, Any]
) -> dict[str, Any]:
    steps = ("assemble", "start", "align", "instruct", "upcycle", "experts", "pack")
    checkpoints = {name: Checkpoint.open(outputs[name]).identity() for name in steps if name in outputs}
    mixture = describe(packed)["mixture"]
    start = _json(outputs["start"] / "start.json") if "start" in outputs else {}
    return {
        **source,
        "start": {key: start[key] for key in ("source", "sha256", "settings", "made_from") if key in start},
        "environment": record_environment(),
        "checkpoints": checkpoints,
        "metrics": {skill: row["metric"] for skill, row in results["packed"]["skills"].items()},
        "blind_guesser": results["blind"]["provenance"].get("guesser", {}),
        "mixture": {key: mixture[key] for key in ("num_experts", "top_k", "combine", "codec", "routed", "shared")},
        "split": "test",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _opening(title: str, report: Mapping[str, Any], source: Mapping[str, Any], results: Any) -> list[str]:
    average = {name: report["accuracy"][name]["average"]["value"] for name in SERIES}
    size = report["bytes"]
    total = sum(report["seconds"].values())
    numbers = [
        (f"{_percent(average['packed'])}%", f"average score, packed (blind: {_percent(average['blind'])}%)"),
        (f"{100 * (average['packed'] - average['dense']):+.1f} points", "packed against the dense model of stage II"),
        (f"{size['moe_llava_experts'] / size['mote_experts_packed']:.1f} x", "smaller than MoE-LLaVA's experts"),
        (f"{total / 60:.0f} min", f"for all steps on {report['provenance']['environment']['cores']} cores"),
    ]
    questions = results["packed"]["average"]["n"]
    note = f"<p>{text(source['note'])}</p>" if source.get("note") else ""
    return [
        f"<h1>{text(title)}</h1>",
        f'<p class="soft">Recipe {text(source["recipe"])}, seed {text(source["seed"])}; {questions:,} questions of the '
        "test split, which neither trained nor tuned anything.</p>",
        note,
        _start(report["provenance"]["start"], "instruct" in report["provenance"]["checkpoints"]),
        facts(numbers),
    ]


def _start(start: Mapping[str, Any], continued: bool) -> str:
    """A sentence for runs that took stages I and II, or stage I and the first part of II, from a file; it stands above
    all figures."""
    if not start:
        return ""
    absent = "Stage I and the beginning of stage II" if continued else "Stages I and II"
    present = "The rest of stage II, stage III" if continued else "Stage III"
    return (
        f"<p><b>{absent} did not run here.</b> What they learned, connector and low-rank changes of the language "
        f"model, came from {text(start['source'])} (SHA-256 {text(start['sha256'][:16])}). {present}, packing, "
        "evaluation and answers ran for real.</p>"
    )


def _accuracy(report: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    accuracy, guesser = report["accuracy"], report["provenance"]["blind_guesser"]
    metrics = report["provenance"]["metrics"]
    rows = []
    for skill in accuracy["packed"]:
        cells = [
            f"<b>{skill}</b>" if skill == "average" else text(skill),
            text(metrics.get(skill, "")).replace("_", " "),
        ]
        for name in SERIES:
            score = accuracy[name].get(skill)
            cells.append(
                f"{_percent(score['value'])} <small>{_percent(score['low'])}-{_percent(score['high'])}</small>"
                if score
                else ""
            )
        rows.append([*cells, f"{accuracy['packed'][skill]['n']:,}"])
    header = ("skill", "metric", *(figures.LABELS[name] for name in SERIES), "n")
    guessers = "; ".join(f"{skill}: {who}" for skill, who in guesser.items())
    return [
        "<h2>Accuracy</h2>",
        figure(figures.accuracy(accuracy), "Score per skill with 95% intervals, test split."),
        table(header, rows),
        '<p class="soft">Scores in percent with 95% intervals: Wilson for right or wrong, bootstrap for shares, MOVER '
        "for the unweighted average. Questions about one picture count as independent. Packed is measured with the "
        f"numerics that ship. Blind is the better guesser of each skill ({text(guessers)}).</p>",
    ]


def _sizes(report: Mapping[str, Any]) -> list[str]:
    size = report["bytes"]
    ffn = size["dense_ffn"]
    shared = ffn if size["mote_experts"] > size["moe_llava_experts"] else 0
    bars = [
        ("dense, one network", {"shared": ffn}),
        ("MoE-LLaVA, bf16 experts", {"routed": size["moe_llava_experts"]}),
        ("MoTE before packing", {"shared": shared, "routed": size["mote_experts"] - shared}),
        ("MoTE, packed", {"shared": shared, "routed": size["mote_experts_packed"] - shared}),
    ]
    rows = [
        [text(name.replace("_", " ")), f"{count:,}", _megabytes(count), f"{count / ffn:.2f} x"]
        for name, count in size.items()
    ]
    return [
        "<h2>Memory</h2>",
        figure(figures.sizes(bars), "Bytes of the feed-forward networks and experts of all layers with a mixture."),
        table(("", "bytes", "", "dense"), rows),
        '<p class="soft">The packed figure is what the file holds, padding, scales and routers included; the others '
        "are computed from shapes at 16 bits a weight. The checkpoint also holds vision tower, connector, attention "
        "and embeddings.</p>",
    ]


def _training(outputs: Mapping[str, Path], report: Mapping[str, Any]) -> list[str]:
    logs = {stage: _rows(outputs[stage] / "losses.jsonl") for stage in STAGES if stage in outputs}
    parts = ["<h2>Training</h2>"]
    if any(logs.values()):
        parts.append(figure(figures.losses(logs), "Loss by optimiser step, mean over the steps since the last row."))
    warnings = []
    for stage in STAGES:
        path = outputs.get(stage, Path()) / "training.json"
        if path.is_file():
            warnings += [f"{stage}: {warning}" for warning in _json(path).get("warnings", [])]
    if warnings:
        parts.append("<p>Warnings:</p><ul>" + "".join(f"<li>{text(warning)}</li>" for warning in warnings) + "</ul>")
    rows = [[text(step.replace("_", " ")), f"{value:,.0f}"] for step, value in report["seconds"].items()]
    total = ["<b>all steps</b>", f"{sum(report['seconds'].values()):,.0f}"]
    return [*parts, table(("step", "seconds"), [*rows, total])]


def _routing(result: Mapping[str, Any]) -> list[str]:
    if not result["routing"]:
        return []
    rows = result["routing"]
    gates = [row["mean_gate"] for row in rows]
    caption = (
        "Share of the tokens that each routed expert took, by layer, while the test split was evaluated. "
        f"Mean gate over all layers {sum(gates) / len(gates):.2f}."
    )
    return ["<h2>Routing</h2>", figure(figures.routing(rows), caption)]


def _samples(outputs: Mapping[str, Path], config: ReportConfig) -> list[str]:
    rows = [row for row in _rows(outputs["evaluate_packed"] / "shown.jsonl") if row.get("image")]
    cards = []
    for row in rows:
        picture = outputs["data"] / row["image"]
        if not picture.is_file():
            raise DataError(f"{picture}: a picture of the report is missing; delete {outputs['data']} and run again")
        cards.append(
            card(picture, row["question"], row["given"] or "", row["expected"], right=float(row["score"]) == 1.0)
        )
    return [
        "<h2>Test pictures and answers</h2>",
        '<p class="soft">The first pictures of each skill in the test split, answered in text by the packed model. '
        "Wrong is everything that does not score 1.</p>",
        '<div class="cards">' + "".join(cards) + "</div>",
        f'<p class="soft">{text(config.attribution)}</p>',
    ]


def _origin(report: Mapping[str, Any], source: Mapping[str, Any], out: Path) -> list[str]:
    packed = shlex.quote(str(out / "packed"))
    commands = [
        str(source["command"]),
        f'mote ask {packed} PICTURE.png "What is in the picture?"',
        f"mote info {packed}",
        f"mote verify {packed}",
        f"mote evaluate {packed} --data {shlex.quote(str(out / 'data' / 'test.jsonl'))} --out scores",
    ]
    provenance = report["provenance"]
    environment = provenance["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    items = [
        ("recipe", source["recipe"]),
        ("seed", source["seed"]),
        ("git", environment["git"] or "unknown (installed from a wheel)"),
        ("versions", versions),
        *((f"start, {key}", value) for key, value in provenance["start"].items() if isinstance(value, str)),
        ("machine", f"{environment['cpu'] or environment['platform']}, {environment['cores']} cores"),
        ("memory", f"{environment['memory_bytes'] / 1e9:.0f} GB"),
        ("mixture", json.dumps(provenance["mixture"], sort_keys=True)),
        *((f"id of {name}", identity) for name, identity in provenance["checkpoints"].items()),
    ]
    return [
        "<h2>How to get this again</h2>",
        "<pre><code>" + "\n".join(text(command) for command in commands) + "</code></pre>",
        definitions(items),
    ]
