"""One engine in one process: opened once, then measured. The protocol between engine.py and its workers.

A worker prints one JSON object: `open_s`; `ttft_s`, the first token of a prompt of 8 tokens, opening included, imports
not; `prefill_s` {tokens: [seconds]}; `decode_s` [seconds a token]; `peak_bytes`, the resident peak above what the
process held after its imports; and whatever `facts` the engine tells.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FIRST_PROMPT = 8
SHORT_PROMPT = 64
_RESET_PEAK = "5"  # to /proc/self/clear_refs


class Engine(Protocol):
    """What a worker measures. Tokens are ids; the sequence is one, and starts again with `prefill`."""

    def prefill(self, ids: Sequence[int]) -> int:
        """Reads a whole prompt from an empty cache and returns the likeliest next token."""

    def step(self, token: int) -> int:
        """Reads one token more and returns the likeliest next one."""

    def facts(self) -> dict[str, Any]:
        """What else the row should say: bytes of weights, of the cache, the kernels in use."""


def resident(field: str) -> int:
    """Bytes that /proc/self/status tells: "VmRSS" now, "VmHWM" at the peak; 0 where there is no such file."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def measure(
    opener: Callable[[], Engine], *, vocab: int, prompts: Sequence[int], decode: int, repeats: int
) -> dict[str, Any]:
    """All measurements of one process; the first call of each kind counts only where it says so (`ttft_s`)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    before = resident("VmRSS")
    ids = [int(token) for token in np.random.default_rng(1).integers(0, vocab, max(SHORT_PROMPT, *prompts))]
    start = time.perf_counter()
    engine = opener()
    opened = time.perf_counter()
    engine.prefill(ids[:FIRST_PROMPT])
    first = time.perf_counter()
    prefill: dict[str, list[float]] = {}
    for tokens in prompts:
        prefill[str(tokens)] = [_seconds(partial(engine.prefill, ids[:tokens])) for _ in range(repeats)]
    token = engine.prefill(ids[:SHORT_PROMPT])
    steps = []
    for _ in range(decode):
        begin = time.perf_counter()
        token = engine.step(token)
        steps.append(time.perf_counter() - begin)
    return {
        "open_s": opened - start,
        "ttft_s": first - start,
        "prefill_s": prefill,
        "decode_s": steps[1:],
        "peak_bytes": resident("VmHWM") - before,
        "facts": engine.facts(),
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def serve(open_engine: Callable[[argparse.Namespace], Engine]) -> None:
    """The command line of a worker: measures what `open_engine` opens and prints the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocab", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--prompts", type=int, nargs="+", required=True)
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1)
    a = parser.parse_args()
    result = measure(lambda: open_engine(a), vocab=a.vocab, prompts=a.prompts, decode=a.decode, repeats=a.repeats)
    json.dump(result, sys.stdout)
