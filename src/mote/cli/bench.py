"""`mote bench`: what a packed checkpoint costs on this machine, and where a token's time goes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mote.cli.options import AsJson, Debug, Seed, Threads

EXAMPLE = "mote bench runs/small/packed --threads 2"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, packed or dense.")],
    prompt: Annotated[int, typer.Option("--prompt", min=1, help="Tokens of the prompt.")] = 256,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens decoded after it.")] = 32,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Times that each is measured.")] = 5,
    kv: Annotated[str, typer.Option("--kv", help="Numbers of the key-value cache: bf16 or f32.")] = "bf16",
    compare: Annotated[bool, typer.Option("--compare", help="Also compare with transformers, teacher-forced.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Questions to compare on, LLaVA JSON or JSONL; else random tokens.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Questions of --data to compare on.")] = 32,
    seed: Seed = None,
    threads: Threads = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a checkpoint in the engine.

    Opening, memory, prefill, decoding, the share of the machine's read bandwidth, and the parts of a token's time.
    """
    from mote.cli.failures import say
    from mote.cli.output import emit
    from mote.run.bench import BenchConfig, bench

    config = BenchConfig(prompt=prompt, tokens=tokens, repeats=repeats, threads=threads, kv=kv, seed=seed or 0)
    figures, engine = bench(checkpoint, config, say=say)
    comparison = _compare(checkpoint, engine, data, limit, seed or 0) if compare or data else None
    report = {**_report(engine, figures, kv), "figures": figures, "compare": comparison}
    emit(report, as_json=as_json, lines=_lines(engine, figures, comparison))


def _compare(checkpoint: Path, engine: Any, data: Path | None, limit: int, seed: int) -> dict[str, Any]:
    import dataclasses
    import math

    import numpy as np

    from mote.cli.failures import say
    from mote.data.conversation import read_conversations
    from mote.run.compare import Text, compare, texts_of

    say("the same texts in transformers")
    generator = np.random.default_rng(seed)
    if data is None:
        texts = [Text(ids=ids.tolist()) for ids in generator.integers(0, engine.vocabulary, (4, 64))]
    else:
        rows = read_conversations(data)
        chosen = sorted(generator.permutation(len(rows))[:limit].tolist())
        texts = texts_of(engine, [rows[i] for i in chosen])
    found = dataclasses.asdict(compare(checkpoint, engine, texts))
    return {name: None if math.isnan(value) else value for name, value in found.items()}  # JSON has no NaN


def _report(engine: Any, figures: dict[str, Any], kv: str) -> dict[str, Any]:
    """In the vocabulary that all benchmarks share: rows of measurements, with machine and versions."""
    from mote.checkpoint.environment import record_environment
    from mote.kernels import info

    environment = record_environment()
    common = {
        "format": engine.weights.formats,
        "shape": engine.weights.shape,
        "threads": engine.threads,
        "isa": info()["isa"],
        "precision": {**engine.weights.formats, "cache": kv},
        "peer": None,
        "peer_name": None,
        "ratio": None,
    }

    def row(what: str, tokens: int, unit: str, ours: Any) -> dict[str, Any]:
        single = ours if isinstance(ours, dict) else {"median": ours, "min": ours, "max": ours, "n": 1}
        kept = {key: single[key] for key in ("median", "min", "max", "n")}
        return {"what": what, "tokens": tokens, "unit": unit, "ours": kept, **common}

    prefill, decode = figures["prefill"], figures["decode"]
    return {
        "schema": 1,
        "machine": {key: environment[key] for key in ("platform", "cpu", "cores", "memory_bytes")},
        "versions": environment["versions"],
        "git": environment["git"],
        "rows": [
            row("open", 1, "s", figures["open"]["to_first_token"]),
            row("resident", 0, "bytes", figures["resident"]["all"]),
            row("prefill", prefill["tokens"], "tokens/s", _rates(prefill)),
            {**row("decode", decode["context"], "tokens/s", _rates(decode)), "parts": figures["parts"]},
        ],
    }


def _rates(seconds: dict[str, Any]) -> dict[str, Any]:
    return {
        "median": 1 / seconds["median"],
        "min": 1 / seconds["max"],
        "max": 1 / seconds["min"],
        "n": seconds["n"],
    }


def _lines(engine: Any, figures: dict[str, Any], comparison: dict[str, Any] | None) -> Iterator[str]:
    from mote.cli.output import human_bytes, table
    from mote.kernels import info

    opened, held, prefill, decode = (figures[key] for key in ("open", "resident", "prefill", "decode"))
    yield f"{engine.threads} threads, {info()['isa']} kernels; {_formats(engine)}"
    yield ""
    rows = [
        ("open, imports done: weights", f"{opened['weights']:.3f} s"),
        ("  processor and tokenizer", f"{opened['processor']:.3f} s"),
        ("  all, to the first token", f"{opened['to_first_token']:.3f} s"),
        ("weights of the language model", human_bytes(held["weights"])),
        ("resident, added since imports", human_bytes(held["all"])),
        ("  of which pages of files", human_bytes(held["files"])),
        (f"prefill of {prefill['tokens']} tokens", f"{1 / prefill['median']:,.0f} tokens/s"),
        (f"decode after {decode['context']} tokens", f"{1 / decode['median']:,.1f} tokens/s"),
        ("bytes that a token reads", human_bytes(figures["token_bytes"])),
        (f"read bandwidth, {figures['bandwidth']['by']}", f"{figures['bandwidth']['bytes_per_second'] / 1e9:.1f} GB/s"),
        ("share of it while decoding", f"{figures['share_of_bandwidth']:.0%}"),
    ]
    yield from table(("", ""), rows)[1:]
    yield ""
    whole = sum(figures["parts"].values())
    parts = [(name, f"{1e3 * s:.3f}", f"{s / whole:.0%}") for name, s in figures["parts"].items()]
    yield from table(("a decoded token", "ms", "share"), [*parts, ("all", f"{1e3 * whole:.3f}", "")])
    if comparison is not None:
        yield ""
        yield from table(
            ("against transformers in fp32", ""), [(name, _figure(value)) for name, value in comparison.items()]
        )


def _figure(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _formats(engine: Any) -> str:
    return ", ".join(f"{part} {name}" for part, name in engine.weights.formats.items())
