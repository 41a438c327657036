"""What a checkpoint costs on this machine: opening, memory, prefill, decode, and where a token's time goes.

Decoding reads every weight that a token passes once, so that its limit is the machine's read bandwidth, which is
measured in the same run: the faster of two ways of reading far more memory than the caches hold, numpy's sum and the
kernels' own product of a bf16 matrix and a vector, which does next to nothing else. Times are medians over `repeats`,
with minimum and maximum; the clock is the wall's.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mote.errors import CheckpointError, EngineError
from mote.kernels.abi import PARTS
from mote.run.engine import Engine, open_engine

READ_BYTES = 1 << 28
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """prompt: tokens of the prompt that is timed. tokens: decoded after it. repeats: of each figure. threads: 0 for all
    cores. kv: numbers of the cache. seed: of the random tokens."""

    prompt: int = 256
    tokens: int = 32
    repeats: int = 5
    threads: int = 0
    kv: str = "bf16"
    seed: int = 0


def bench(
    checkpoint: Path, config: BenchConfig | None = None, *, say: Callable[[str], None] = lambda line: None
) -> tuple[Figures, Engine]:
    """Measures `checkpoint`: figures as `docs/reference/cli.md` lists them, and the engine. say: is told what is
    measured next; a moving bar would take time from what it shows. Raises CheckpointError for one that the engine does
    not run, EngineError for more tokens than it has positions."""
    config = config or BenchConfig()
    say(f"opening {checkpoint}")
    open_engine(checkpoint, threads=config.threads, kv=config.kv)  # imports what it needs
    before = resident()
    begun = time.perf_counter()
    engine = open_engine(checkpoint, threads=config.threads, kv=config.kv)
    if not isinstance(engine, Engine):
        raise CheckpointError(f"{checkpoint}: the engine does not run it: {engine}")
    first = engine.sequence()
    first.append(1)
    opened = time.perf_counter() - begun
    engine.step([first])
    warm = time.perf_counter() - begun
    engine.free(first)
    tokens = min(config.prompt, engine.positions - config.tokens)
    if tokens < 1:
        raise EngineError(
            f"{config.tokens} tokens after a prompt, and the model has {engine.positions} positions; decode less"
        )
    ids = np.random.default_rng(config.seed).integers(0, engine.vocabulary, tokens)
    say(f"prefill, {config.repeats} x {tokens} tokens")
    prefill = [_prefill(engine, ids) for _ in range(config.repeats)]
    say(f"decoding, {config.repeats} x {config.tokens} tokens")
    decode, parts = _decode(engine, ids, config)
    say("read bandwidth")
    bandwidth = read_bandwidth(engine.threads, config.repeats)
    per_token = engine.weights.token_bytes + _cache_bytes(engine, tokens + config.tokens // 2)
    return {
        "open": {"seconds": opened, "to_first_token": warm, **engine.opening},
        "resident": {**_difference(before, resident()), "weights": engine.weights.bytes},
        "prefill": {"tokens": tokens, **spread(prefill)},
        "decode": {"tokens": config.tokens, "context": tokens, **spread(decode)},
        "parts": parts,
        "bandwidth": bandwidth,
        "token_bytes": per_token,
        "share_of_bandwidth": per_token / statistics.median(decode) / bandwidth["bytes_per_second"],
        "threads": engine.threads,
    }, engine


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, minimum, maximum and number of measurements."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "n": len(seconds)}


def _prefill(engine: Engine, ids: np.ndarray) -> float:
    """Seconds a token."""
    sequence = engine.sequence()
    sequence.append(*ids)  # past the prefix cache
    begun = time.perf_counter()
    engine.step([sequence])
    seconds = time.perf_counter() - begun
    engine.free(sequence)
    return seconds / len(ids)


def _decode(engine: Engine, ids: np.ndarray, config: BenchConfig) -> tuple[list[float], dict[str, float]]:
    """Seconds of each token, and of its parts on average: the decoder's, what a native call does besides, and Python's
    share, in which the embedding is looked up and the likeliest token found."""
    start = engine.sequence()
    start.append(*ids)
    logits = engine.step([start])[0]
    seconds: list[float] = []
    engine.nanoseconds[:] = 0
    native = engine.native_seconds
    for _ in range(config.repeats):
        sequence, row = engine.fork(start), logits
        for _ in range(config.tokens):
            begun = time.perf_counter()
            sequence.append(int(row.argmax()))
            row = engine.step([sequence])[0]
            seconds.append(time.perf_counter() - begun)
        engine.free(sequence)
    engine.free(start)
    inside = {name: float(value) / 1e9 for name, value in zip(PARTS, engine.nanoseconds, strict=True)}
    native = engine.native_seconds - native
    parts = {**inside, "native_rest": native - sum(inside.values()), "python": sum(seconds) - native}
    return seconds, {name: value / len(seconds) for name, value in parts.items()}


def read_bandwidth(threads: int, repeats: int = 5) -> Figures:
    """Bytes that `threads` read a second from memory, and by which of the two ways."""
    import torch

    from mote.kernels import linear

    memory = np.full(READ_BYTES // 8, 0x3F803F803F803F80, dtype=np.uint64)  # bf16 ones
    parts = np.array_split(memory, threads)
    columns = 4096
    matrix = torch.from_numpy(memory.view(np.int16)).view(torch.bfloat16).view(-1, columns)
    sizes = ("bf16", len(matrix), columns, 0, "tensor")
    x = torch.ones(1, columns)
    with ThreadPoolExecutor(threads) as pool:
        ways: dict[str, Callable[[], object]] = {
            "numpy sum": lambda: list(pool.map(np.sum, parts)),
            "bf16 matrix times vector": lambda: linear(matrix, None, *sizes, x, threads=threads),
        }
        rates = {name: READ_BYTES / min(_timed(way) for _ in range(max(3, repeats))) for name, way in ways.items()}
    best = max(rates, key=lambda name: rates[name])
    return {"bytes_per_second": rates[best], "by": best, "bytes": READ_BYTES}


def _timed(way: Callable[[], object]) -> float:
    begun = time.perf_counter()
    way()
    return time.perf_counter() - begun


def _cache_bytes(engine: Engine, context: int) -> int:
    """Bytes of keys and values that one token reads."""
    decoder = engine.weights.decoder
    width = 2 if engine.weights.kv == "bf16" else 4
    return int(2 * decoder.num_layers * decoder.kv_heads * decoder.head_dim * width * context)


def resident() -> dict[str, int]:
    """Resident bytes of this process: all, and of these in files (weights that were touched) and of its own."""
    names = {"VmRSS": "all", "RssFile": "files", "RssAnon": "own"}
    found = dict.fromkeys(names.values(), 0)
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in names:
                found[names[key]] = int(value.split()[0]) * 1024
    except OSError:  # not Linux
        pass
    return found


def _difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}
