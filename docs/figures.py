"""Fills the tables of measured figures in README.md and docs/ from reports, so that none is typed by hand.

python docs/figures.py            fills every region below and redraws its picture (needs matplotlib)
python docs/figures.py --check    changes nothing; exits with 1 when a region is not what its report.json gives

A region stands between two comments; the first names the report, relative to the repository: a run's report.json, or
one of `benchmarks`.

    <!-- figures: filled from studies/small/report.json -->
    <!-- end of figures -->

Of a report with several tables it may name one: `filled from benchmarks/results/ptq.json as perplexities`.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REGION = re.compile(
    r"(<!-- figures: filled from (?P<report>\S+)(?: as (?P<view>\w+))? -->\n)(?P<body>.*?)(<!-- end of figures -->)",
    re.DOTALL,
)
SERIES = {"blind": "blind", "dense": "dense, stage II", "mote": "MoTE, stage III", "packed": "MoTE, packed"}
SIZES = {
    "dense_ffn": "feed-forward networks of the dense model, bf16",
    "moe_llava_experts": "MoE-LLaVA's experts, bf16",
    "mote_experts": "MoTE before packing, all in bf16",
    "mote_experts_packed": "MoTE packed: shared expert, routed experts, scales, routers",
    "checkpoint": "the whole packed checkpoint",
}
OURS, THEIRS, SHAPE = "mote 4 base3", "llama.cpp 4 TQ2_0", "1.5b"
SPEED = (
    ("decode", 1, "tokens/s", "decode, tokens/s"),
    ("prefill", 729, "tokens/s", "reading a picture's 729 tokens, tokens/s"),
    ("ttft", 729, "s", "from a picture to the first word, s"),
    ("resident", 729, "bytes", "memory above the imports, MiB"),
)
"""what, tokens, unit of a row of engine.json, and what the table calls it."""
QUANTIZED = {
    "base": "SmolLM2-135M",
    "control": "SmolLM2-135M after stage II of the demo",
    "dithered": "SmolLM2-135M, moved off its 4-bit grid",
    "qwen0.5b": "Qwen2.5-Coder-0.5B-Instruct",
    "qwen1.5b": "Qwen2.5-Coder-1.5B-Instruct",
}
"""Models of ptq.json in the order of its tables."""
METHODS = (
    ("rtn", True),
    ("rtn", False),
    ("hqq", False),
    ("gptq", True),
    ("gptq", False),
    ("awq", True),
    ("awq", False),
)
"""(method, symmetric) in the order of rows."""
COLUMNS = METHODS[:3] + METHODS[4:5]
"""Those of the short table."""
PICTURE_INK = "#7d8590"
"""Grey that is legible on light and dark pages; the report's own figures take the page's text colour."""


def percent(score: Mapping[str, float]) -> str:
    """{"value", "low", "high"} from 0 to 1 as "81.7 (76.9 to 85.6)"."""
    return f"{100 * score['value']:.1f} ({100 * score['low']:.1f} to {100 * score['high']:.1f})"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table: the first column flush left, the others flush right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def accuracy(report: Mapping[str, Any]) -> list[str]:
    """Score per skill and model; the average last."""
    scores = report["accuracy"]
    skills = sorted(scores["packed"], key=lambda skill: (skill == "average", skill))
    rows = []
    for skill in skills:
        title = "**average**" if skill == "average" else skill
        cells = [percent(scores[name][skill]) for name in SERIES]
        rows.append([title, str(scores["packed"][skill]["n"]), *cells])
    return table(["skill", "questions", *SERIES.values()], rows)


def sizes(report: Mapping[str, Any]) -> list[str]:
    """True and computed bytes; which is which is said in docs/explanation/memory.md."""
    counts = report["bytes"]
    rows = [
        [title, f"{counts[key]:,}", f"{counts[key] / counts['dense_ffn']:.2f}"]
        for key, title in SIZES.items()
        if key in counts
    ]
    return table(["", "bytes", "dense = 1"], rows)


def origin(report: Mapping[str, Any]) -> str:
    """What was run, on which machine, at which commit, and how long it took."""
    provenance = report["provenance"]
    environment = provenance["environment"]
    cpu = environment["cpu"]
    model = cpu["model"] if isinstance(cpu, Mapping) else cpu
    minutes = sum(report["seconds"].values()) / 60
    git = (environment["git"] or "an installed wheel")[:12]
    start = provenance.get("start")
    learned = f" Stages I and II came from shipped data (`{start['source']}`)." if start else ""
    return (
        f"`{provenance['command']}`, seed {provenance['seed']}, {minutes:.0f} minutes on {environment['cores']} cores "
        f"({model}), commit {git}.{learned} Test split, percent with 95% intervals."
    )


def speed(report: Mapping[str, Any], picture: str) -> list[str]:
    """Our engine and llama.cpp on the same model, on one thread."""
    found = {
        (row["what"], row["tokens"], row["unit"]): row
        for row in report["rows"]
        if (row["format"], row["peer_name"], row["model_shape"], row["threads"]) == (OURS, THEIRS, SHAPE, 1)
    }
    rows = []
    for what, tokens, unit, title in SPEED:
        row = found[what, tokens, unit]
        divisor = 2**20 if unit == "bytes" else 1
        values = (row[side]["median"] / divisor for side in ("ours", "peer"))
        rows.append([title, *(f"{value:,.4g}" if value < 1e3 else f"{value:,.0f}" for value in values)])
        rows[-1].append(f"{row['ratio']:.2f}")
    return table(["", "mote", "llama.cpp", "better by"], rows)


def scores(report: Mapping[str, Any], picture: str) -> list[str]:
    """What a run's report says."""
    drawing = f"![Score per skill with 95% intervals]({picture})"
    return [origin(report), "", *accuracy(report), "", drawing, "", *sizes(report)]


def number(value: float) -> str:
    """A perplexity or a difference in nats: two decimals, none from a thousand, a power of ten from 100,000."""
    if value < 100_000:
        return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"
    digit, exponent = f"{value:.0e}".split("e")
    return f"{digit}e{int(exponent)}"


def span(found: Mapping[str, float] | None, form: str = ".3f") -> str:
    """{"value", "low", "high"} as "0.258 (0.243 to 0.273)", from 100 the value alone; nothing where there is none."""
    if found is None:
        return ""
    if found["value"] >= 100:
        return number(found["value"])
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def by_model(report: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Rows of ptq.json by model and precision; the model as it is first, then from many bits to few."""
    names = list(QUANTIZED)
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(report["rows"], key=lambda row: names.index(row["model"])):
        found.setdefault((row["model"], row["precision"]), []).append(row)
    for rows in found.values():
        rows.sort(key=lambda row: (-(row["bits"] or 99), _order(row), row["calibration"] != "text"))
    return found


def _order(row: Mapping[str, Any]) -> int:
    named = (row["method"], row["symmetric"])
    return METHODS.index(named) if named in METHODS else -1


def quantized(report: Mapping[str, Any], picture: str) -> list[str]:
    """A table for each model: a line for every method and width."""
    lines = []
    for (name, precision), rows in by_model(report).items():
        cells = []
        for row in rows:
            method = f"{row['method'].upper()}{'' if row['symmetric'] else ', zero points'}" if row["bits"] else "none"
            data = {"mix": " (mix)"}.get(row["calibration"], "")
            bits = str(row["bits"] or 16)
            cells.append([bits, method + data, span(row["perplexity"], ".2f")])
            cells[-1] += [span(row.get("excess")), span(row.get("divergence"))]
        header = ["bits", "method", "perplexity", "lost, nats a token", "KL, nats a token"]
        lines += [f"**{QUANTIZED[name]}**, forward passes in {precision}:", "", *table(header, cells), ""]
    return lines[:-1]


def perplexities(report: Mapping[str, Any], picture: str) -> list[str]:
    """A line for every model and width, a column for each of `COLUMNS`."""
    lines = []
    for (name, _), rows in by_model(report).items():
        if name in ("control", "dithered"):
            continue  # what they are for is said on the page of the full tables
        full = number(rows[0]["perplexity"]["value"])
        for bits in sorted({row["bits"] for row in rows} - {0}, reverse=True):
            of = {(r["method"], r["symmetric"]): r for r in rows if r["bits"] == bits and r["calibration"] != "mix"}
            cells = [number(of[c]["perplexity"]["value"]) if c in of else "" for c in COLUMNS]
            lines.append([f"{QUANTIZED[name]} ({full})", str(bits), *cells])
    header = [f"`{method}{'' if symmetric else ' --asymmetric'}`" for method, symmetric in COLUMNS]
    return table(["model (in 16 bits)", "bits", *header], lines)


VIEWS = {"scores": scores, "speed": speed, "quantized": quantized, "perplexities": perplexities}
"""Tables by the names that regions give them."""


def body(report: Mapping[str, Any], picture: str, view: str | None = None) -> str:
    """The text of a region; `picture` is the path of the drawing from the page that holds the region."""
    view = view or ("scores" if "accuracy" in report else "speed")
    if view not in VIEWS:
        raise SystemExit(f"figures: there is no table {view!r}; use one of {', '.join(VIEWS)}")
    return "\n".join(["", *VIEWS[view](report, picture), "", ""])


def picture_of(report: Path) -> Path:
    """Where the drawing of a report is kept: docs/images/RUN-accuracy.svg below the same root."""
    return Path("docs/images") / f"{report.parent.name}-accuracy.svg"


def draw(report: Mapping[str, Any], out: Path) -> None:
    """The report's own figure of accuracy as a picture that stands alone."""
    from mote.study.figures import accuracy as drawn

    svg = drawn(report["accuracy"]).replace("currentColor", PICTURE_INK)
    out.write_text(svg if "xmlns=" in svg else svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1))


def main(arguments: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a region is not up to date"
    )
    check = parser.parse_args(arguments).check
    wrong = 0
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        filled = text
        for region in REGION.finditer(text):
            source = Path(region["report"])
            if not (root / source).is_file():
                print(f"{page.relative_to(root)}: {source} is not there; run the command that writes it first")
                wrong += 1
                continue
            report = json.loads((root / source).read_text(encoding="utf-8"))
            picture = root / picture_of(source)
            new = body(report, os.path.relpath(picture, page.parent), region["view"])
            if check and new != region["body"]:
                print(f"{page.relative_to(root)}: the figures are not those of {source}; run python docs/figures.py")
                wrong += 1
            if not check:
                if "accuracy" in report:
                    draw(report, picture)
                filled = filled.replace(region[0], region[1] + new + region[5])
        if filled != text:
            page.write_text(filled, encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
