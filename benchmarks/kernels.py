"""How fast is one linear map, against the kernels of other engines and against the machine's limits?

gemv: one token times a stream of matrices from RAM, as decode reads experts. gemm: 64 and 729 tokens times one matrix,
as prefill does. Every side gets the same ternary matrix and fp32 activations, quantises them itself, is first checked
against fp32, and takes turns with all others within a round. The limits (bytes a second read from RAM, multiply-adds a
second in registers) are measured in the same rounds; a ratio to a limit is our share of it.

    python -m benchmarks.kernels [--shape 0.5b 1.5b 3b] [--threads 1 2] [--peers .venv-peers]

All memory is in large pages (2 MiB) where the system gives them, on every side, as files are that a recent Linux maps
from its page cache. In pages of 4 KiB (--small-pages), as older systems map files, one token's product depends on where
its pages happen to lie: the same matrix was read at 10 to 22 GB/s (studies/LOG.md, 2026-11-30).

Peers come from `make bench-peers-setup`; one that is missing, or cannot run a shape, is named and left out.
"""

import argparse
import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.ceilings import Ceilings
from benchmarks.report import RESULTS, Numbers, alternate, compare, rates, save, warn_if_busy
from benchmarks.shapes import SHAPES, Shape
from benchmarks.sides import ggml, litespark, ours, torch_side
from benchmarks.sides.product import Problem, Product, Unavailable, check
from benchmarks.versions import versions_of

TERNARY = ("TQ2_0", "TQ1_0", "IQ2_BN", "IQ2_BN_R4", "litespark", "torch f32", "torch bf16", "torch int8")
RIVALS = {
    "2bit": (*TERNARY, "int4", "bf16"),
    "base3": (*TERNARY, "2bit", "int4", "bf16"),
    "int4": ("Q4_0",),
    "int8": ("Q8_0", "torch int8"),
    "bf16": ("BF16", "torch f32", "torch bf16"),
}
"""Our format -> the sides that its rows name: peers, and our own other formats."""
BITS = {"TQ2_0": 2.1, "TQ1_0": 1.7, "IQ2_BN": 2, "IQ2_BN_R4": 2, "litespark": 2, "Q4_0": 4.5, "Q8_0": 8.5, "BF16": 16}
BITS |= {
    "torch f32": 32,
    "torch bf16": 16,
    "torch int8": 8,
    "2bit": 2,
    "base3": 1.6,
    "int4": 4.25,
    "int8": 8.25,
    "bf16": 16,
}
"""Weights are cut into as many matrices as fill the same memory on every side."""
TOLERANCE = {"Q4_0": 0.15, "torch bf16": 0.01, "BF16": 0.01}
"""Relative error against fp32; 4-bit ggml cannot hold +1 and -1 alike, others lose only int8 rounding."""
PEAK, READ = "integer dot peak", "read bandwidth"
PR_SET_THP_DISABLE = 41
TUNABLES, LARGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
"""Makes malloc ask for large pages, for all libraries of the process; it is read when a process starts."""
Makers = dict[str, Callable[[Problem], Product]]


def makers(peers: Path) -> Makers:
    """How each side is made."""
    found: Makers = {name: partial(ours.product, name) for name in ours.FORMATS}
    for name in ("TQ2_0", "TQ1_0", "Q4_0", "Q8_0", "BF16"):
        found[name] = partial(ggml.product, name, peers=peers)
    for name in ("IQ2_BN", "IQ2_BN_R4"):
        found[name] = partial(ggml.product, name, peers=peers, package="ik_llama_cpp")
    found["litespark"] = partial(litespark.product, peers=peers)
    for name in ("f32", "bf16", "int8"):
        found[f"torch {name}"] = partial(torch_side.product, name)
    return found


def problem(rows: int, cols: int, tokens: int, threads: int) -> Problem:
    generator = np.random.default_rng(0)
    q_NK = generator.integers(-1, 2, (rows, cols), dtype=np.int8)
    x_TK = generator.standard_normal((tokens, cols), dtype=np.float32)
    return Problem(q_NK=q_NK, scale=2**-5, count=1, x_TK=x_TK, threads=threads)  # a scale that every format holds


def prepared(sides: Makers, base: Problem, megabytes: int) -> dict[str, tuple[Problem, Product]]:
    """The sides that run here, checked. megabytes: of matrices per side; 0 for one matrix."""
    ready = {}
    for name, make in sides.items():
        count = max(1, round(megabytes * 2**20 * 8 / (BITS[name] * base.q_NK.size)))
        one = replace(base, count=count)
        try:
            product = make(one)
        except Unavailable as reason:
            leave_out(name, str(reason))
            continue
        check(name, product, one, TOLERANCE.get(name, 0.02))
        ready[name] = (one, product)
    return ready


@cache
def leave_out(name: str, reason: str) -> None:
    """Says once why a side is missing."""
    print(f"kernels: {name} left out: {reason}", file=sys.stderr)


def measure(
    what: str, sides: Makers, base: Problem, megabytes: int, rounds: int, ceilings: Ceilings
) -> list[dict[str, Any]]:
    """The rows of one problem, all sides and the limit in the same rounds."""
    ready = prepared(sides, base, megabytes)
    runs: dict[str, Callable[[], object]] = {name: product.run for name, (_, product) in ready.items()}
    limit = READ if what == "gemv" else PEAK
    loops = ceilings.reading(base.threads) if what == "gemv" else {PEAK: ceilings.dotting(base.threads)}
    times = alternate({**runs, **loops}, rounds)
    if what == "gemv":
        ceiling = rates(ceilings.read_bytes, min((times[loop] for loop in loops), key=median))
    else:
        ceiling = rates(ceilings.dot_work(base.threads), [min(times[PEAK])])
    speed = {name: rates(one.work, times[name]) for name, (one, _) in ready.items()}
    for _, product in ready.values():
        product.free()
    rows, cols = base.q_NK.shape
    shared = {"what": what, "shape": {"H": cols, "F": rows, "L": 1, "E": 1}, "tokens": len(base.x_TK)}
    shared |= {"threads": base.threads, "isa": ours.isa()}
    found = []
    for name, rivals in RIVALS.items():
        if name not in ready:
            continue
        one, product = ready[name]
        fields = {
            **shared,
            "format": name,
            "precision": product.precision,
            "resident_in": "RAM" if megabytes else "cache",
        }
        for peer in rivals:
            if peer in ready:
                named = {"peer_name": peer, "peer_precision": ready[peer][1].precision, "unit": unit(what)}
                found.append({**fields, **named, **compare(speed[name], speed[peer])})
        own = rates(product.nbytes * one.count, times[name]) if what == "gemv" else speed[name]
        named = {"peer_name": limit, "unit": "GB/s" if what == "gemv" else "GMAC/s"}
        found.append({**fields, **named, **compare(own, ceiling)})
    return found


def same_pages(*, small: bool) -> None:
    """Pages of one size for all sides: numpy alone would ask for large ones for its arrays."""
    if small:
        ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    elif os.environ.get(TUNABLES) != LARGE_PAGES:
        os.environ[TUNABLES] = LARGE_PAGES
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.kernels", *sys.argv[1:]])


def unit(what: str) -> str:
    return "Gweights/s" if what == "gemv" else "GMAC/s"


def show(row: dict[str, Any]) -> str:
    """One line of the table."""
    size = f"{row['shape']['F']}x{row['shape']['H']}"
    head = f"{row['what']:4} {row['format']:5} {size:11} T={row['tokens']:<4}{row['threads']} thr"
    peer = f"{row['peer_name']:16} {numbers(row['peer'])}"
    return f"{head}  {numbers(row['ours'])}  {peer} {row['unit']:10} {row['ratio']:6.2f}x"


def numbers(n: Numbers) -> str:
    return f"{n['median']:7.1f} ({n['min']:.1f}-{n['max']:.1f})"


def matrices(shape: Shape) -> list[tuple[int, int]]:
    """Rows and columns of an expert's matrices: gate and up, then down."""
    return [(shape.ffn, shape.hidden), (shape.hidden, shape.ffn)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["1.5b"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--tokens", nargs="*", type=int, default=[64, 729], help="of the gemm rows")
    parser.add_argument("--megabytes", type=int, default=256, help="of matrices per side that gemv streams")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="names of sides, ours and peers; default all")
    parser.add_argument("--small-pages", action="store_true", help="pages of 4 KiB for all sides")
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"))
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.json")
    arguments = parser.parse_args()
    same_pages(small=arguments.small_pages)
    warn_if_busy("kernels")
    sides = {name: make for name, make in makers(arguments.peers).items() if name in (arguments.only or BITS)}
    ceilings = Ceilings(arguments.megabytes)
    settings = {"rounds": arguments.rounds, "megabytes": arguments.megabytes, "dot_instructions": ceilings.dot_name}
    settings["pages"] = "4 KiB" if arguments.small_pages else "2 MiB"
    rows: list[dict[str, Any]] = []
    for threads in arguments.threads:
        for name in arguments.shape:
            for n, k in matrices(SHAPES[name]):
                for tokens in (1, *arguments.tokens):
                    what, megabytes = ("gemv", arguments.megabytes) if tokens == 1 else ("gemm", 0)
                    base = problem(n, k, tokens, threads)
                    found = measure(what, sides, base, megabytes, arguments.rounds, ceilings)
                    rows += [{**row, "model_shape": name} for row in found]
                    print("\n".join(map(show, found)), flush=True)
                    # After each problem, so that a run that is stopped leaves what it has measured.
                    save(arguments.out, versions_of(arguments.peers), rows, settings=settings)


if __name__ == "__main__":
    main()
