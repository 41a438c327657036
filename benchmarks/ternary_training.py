"""What quantisation-aware training costs in one stack of experts, against the plain ways of writing it.

Rows: quantising a stack of matrices, against whole-stack elementwise operations and, with --compile, torch.compile
(whose first call is reported too); forward and backward of `grouped_linear` under bf16 autocast, against
straight-through fake quantisation with one `F.linear` per expert; and the exact integer product against fp32.
Every pair is first checked to agree, and takes turns within a round, so that noise hits both alike.

    python benchmarks/ternary_training.py [--threads 2] [--rounds 15] [--compile] [--out ternary_training.json]
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from mote.checkpoint.environment import record_environment
from mote.ternary.activations import quantize_activation
from mote.ternary.format import WeightFormat
from mote.ternary.integer_matmul import integer_matmul
from mote.ternary.linear import QuantizedCache, grouped_linear, straight_through
from mote.ternary.quantize import dequantize_weight, quantize_weight
from mote.ternary.scales import SCALE_FLOOR, mean_abs

EXPERTS, TOKENS = 4, 1400
SHAPES = {"gate_up": (1536, 576), "down": (576, 1536)}
FORMATS = {
    "ternary/absmean/tensor": WeightFormat(),
    "ternary/absmean/row": WeightFormat(granularity="row"),
    "ternary/lloyd_max/group 64": WeightFormat(scale="lloyd_max", granularity="group", group=64),
}
PAPER = FORMATS["ternary/absmean/tensor"]


def race(ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Milliseconds of both, taking turns: median, min, max, n; ratio of the medians, > 1 when ours is faster."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(rounds + 2):
        for name, call in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            call()
            if turn >= 2:
                times[name].append((time.perf_counter() - start) * 1000)
    result: dict[str, Any] = {
        name: {"median": round(median(t), 3), "min": round(min(t), 3), "max": round(max(t), 3), "n": len(t)}
        for name, t in times.items()
    }
    result["ratio"] = round(median(times["peer"]) / median(times["ours"]), 2)
    return {**result, "unit": "ms"}


def whole_stack_quantizer(w_ENK: Tensor) -> tuple[Tensor, Tensor]:
    """absmean per tensor, each operation over the whole stack: the equations as they stand."""
    flat = w_ENK.flatten(1)
    scale = mean_abs(flat).clamp_min(SCALE_FLOOR)
    return flat.mul(scale.reciprocal()[:, None]).round().clamp(-1, 1).to(torch.int8), scale


def naive_linear(x_TK: Tensor, offsets: list[int], w_ENK: Tensor, fmt: WeightFormat) -> Tensor:
    """Fake quantisation in every forward."""
    w_ENK = straight_through(w_ENK, dequantize_weight(*quantize_weight(w_ENK, fmt), fmt))
    x_q_TK, s_T = quantize_activation(x_TK)
    x_TK = straight_through(x_TK, x_q_TK.float() * s_T[:, None])
    pieces = zip(pairwise(offsets), w_ENK.unbind(0), strict=True)
    return torch.cat([linear(x_TK[a:b], w_NK) for (a, b), w_NK in pieces])


def quantize_rows(rounds: int, compiled: bool) -> list[dict[str, Any]]:
    """Many stacks in turn, as an optimiser step finds them: out of the cache."""
    stacks = [torch.randn(EXPERTS, *SHAPES["gate_up"]) * 0.02 for _ in range(8)]
    turn = iter(range(1 << 30))

    def fresh() -> Tensor:
        return stacks[next(turn) % len(stacks)]

    q, scale = quantize_weight(stacks[0], PAPER)
    plain_q, plain_scale = whole_stack_quantizer(stacks[0])
    if not (torch.equal(q.flatten(1), plain_q) and torch.equal(scale, plain_scale)):
        raise SystemExit("ternary_training: the two quantisers differ")
    peers: dict[str, Callable[[], object]] = {"whole-stack eager": lambda: whole_stack_quantizer(fresh())}
    if compiled:
        fused = torch.compile(whole_stack_quantizer, dynamic=False)
        start = time.perf_counter()
        fused(stacks[0])
        peers[f"torch.compile (first call {time.perf_counter() - start:.1f} s)"] = lambda: fused(fresh())

    def ours(fmt: WeightFormat) -> Callable[[], object]:
        return lambda: quantize_weight(fresh(), fmt)

    rows = []
    for name, fmt in FORMATS.items():
        for peer_name, peer in peers.items() if fmt is PAPER else list(peers.items())[:1]:
            result = race(ours(fmt), peer, rounds)
            label = peer_name if fmt is PAPER else f"{peer_name} absmean/tensor"
            rows.append({"what": "quantize", "format": name, "shape": "gate_up", **result, "peer_name": label})
    return rows


def linear_rows(rounds: int) -> list[dict[str, Any]]:
    return [row for shape, (outputs, inputs) in SHAPES.items() for row in _linear_rows(shape, outputs, inputs, rounds)]


def _linear_rows(shape: str, outputs: int, inputs: int, rounds: int) -> list[dict[str, Any]]:
    offsets = [0, 350, 800, 1000, TOKENS]
    x = torch.randn(TOKENS, inputs, requires_grad=True)
    w = (torch.randn(EXPERTS, outputs, inputs) * 0.02).requires_grad_()
    dy, cache = torch.randn(TOKENS, outputs), QuantizedCache()

    def step(forward: Callable[[], Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            y = forward()
        torch.autograd.grad(y, (x, w), dy.to(y.dtype))

    trained = race(
        lambda: step(lambda: grouped_linear(x, offsets, w, cache, PAPER)),
        lambda: step(lambda: naive_linear(x, offsets, w, PAPER)),
        rounds,
    )
    x_q, q = quantize_activation(x)[0], quantize_weight(w[0], PAPER).q
    exact = race(lambda: integer_matmul(x_q, q, 1), lambda: x_q.float() @ q.float().t(), rounds)
    naive = "fake quantisation in every forward, F.linear per expert"
    return [
        {"what": "train_step", "shape": shape, "precision": "bf16", **trained, "peer_name": naive},
        {"what": "gemm", "shape": shape, "precision": "int8", **exact, "peer_name": "fp32, exact too"},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("ternary_training.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = quantize_rows(arguments.rounds, arguments.compile) + linear_rows(arguments.rounds)
    environment = record_environment()
    report = {
        "schema": 1,
        "machine": {key: environment[key] for key in ("platform", "cpu", "cores", "memory_bytes")},
        "versions": environment["versions"],
        "git": environment["git"],
        "rows": [{**row, "experts": EXPERTS, "tokens": TOKENS, "threads": arguments.threads} for row in rows],
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        medians = f"{row['ours']['median']:9.2f} ms, peer {row['peer']['median']:9.2f} ms, {row['ratio']:5.2f}x"
        kind = f"{row['what']:10} {row.get('format', row.get('precision')):27} {row['shape']:8}"
        print(kind, medians, row["peer_name"], sep="  ")


if __name__ == "__main__":
    main()
