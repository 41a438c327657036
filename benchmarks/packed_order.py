"""Which order of the packed digits is fastest on every ISA? The trial behind docs/reference/packed-format.md.

One token times a stream of matrices from RAM (decode's case) and times one matrix that stays in L2, for strips of
16, 32, 64 and 128 rows and for contiguous rows, in both formats, on AVX2 and AVX512-VNNI; every candidate is first
checked against the exact product. Candidates take turns within a round, so that noise hits all alike. Then the
library's own GEMM against torch in the same run (with 64 tokens or more the digits are unpacked into L1 once, so the
order matters little). One thread.

    python benchmarks/packed_order.py [--megabytes 512] [--rounds 7] [--out packed_order.json]
"""

import argparse
import ctypes
import json
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import mote
from mote import kernels
from mote.ternary.codecs import CODECS

HERE = Path(__file__).resolve().parent
FLAGS = {
    "avx512vnni": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vnni -w",
    "avx2": "-mavx2 -w",
}
COLS = 1280  # inputs that fit both formats and contiguous rows
STREAMS = {"RAM": 8960, "L2": 1536}  # rows of a matrix: many of the first, one of the second again and again
CHOSEN = 4
ORDERS = {0: "contiguous rows", 1: "strips of 16", 2: "strips of 32", 4: "strips of 64", 8: "strips of 128"}
PLANES = {"2bit": 4, "base3": 5}
FORMATS = {"2bit": 1, "base3": 2}


def compiled(isa: str, folder: Path) -> ctypes.CDLL:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise SystemExit("packed_order: no C++ compiler found; install one")
    out = folder / f"orders_{isa}.so"
    source = HERE / "packed_order_trial" / "orders.cpp"
    flags = [*FLAGS[isa].split(), "-O3", "-std=c++17", "-shared", "-fPIC", f"-I{HERE.parent / 'csrc'}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(out)], check=True)
    library = ctypes.CDLL(str(out))
    library.trial_gemv.argtypes = [ctypes.c_int32, ctypes.c_int, ctypes.c_void_p, ctypes.c_int64]
    library.trial_gemv.argtypes += [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    library.trial_width.restype = library.trial_read.restype = ctypes.c_int64
    library.trial_read.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    return library


def in_order(q_NK: torch.Tensor, codec: str, blocks: int, width: int) -> torch.Tensor:
    """The matrix's bytes in a candidate order, from those of the real one or, for rows, from the digits."""
    if blocks == 0:
        planes = PLANES[codec]
        digits = (q_NK + 1).to(torch.int32).view(q_NK.shape[0], -1, planes, width)
        radix = torch.tensor([4**p if codec == "2bit" else 3**p for p in range(planes)], dtype=torch.int32)
        return (digits * radix[:, None]).sum(2).to(torch.uint8).flatten()
    packed = CODECS[codec].pack(q_NK)  # [S, KG, 4 blocks of 16 rows, 64]
    groups = packed.shape[1]
    by_block = packed.view(-1, groups, 4, 64).transpose(1, 2).reshape(-1, blocks, groups, 64)
    return by_block.transpose(1, 2).contiguous().flatten()


def gemv(
    library: ctypes.CDLL, codec: str, blocks: int, matrices: torch.Tensor, rows: int, x: torch.Tensor, repeats: int
) -> Callable[[], torch.Tensor]:
    """A function that multiplies x with each of the matrices [count, bytes], `repeats` times; it returns the last."""
    count, size = matrices.shape
    steps = COLS // (PLANES[codec] * (library.trial_width() if blocks == 0 else 4))
    y = torch.zeros(rows, dtype=torch.int32)
    base, x_pointer, y_pointer = matrices.data_ptr(), x.data_ptr(), y.data_ptr()

    def run() -> torch.Tensor:
        for i in range(count * repeats):
            library.trial_gemv(FORMATS[codec], blocks, base + i % count * size, rows, steps, x_pointer, y_pointer)
        return y

    return run


def rates(runs: dict[Any, Callable[[], Any]], work: float, rounds: int) -> dict[Any, dict[str, Any]]:
    """{candidate: median, min, max, n} of work / second / 1e9, candidates taking turns."""
    raw: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):  # the first round warms up
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            raw[name].append(work / (time.perf_counter() - start) / 1e9)
    return {
        name: {"median": median(values[1:]), "min": min(values[1:]), "max": max(values[1:]), "n": rounds}
        for name, values in raw.items()
    }


def row(ours: dict[str, Any], peer: dict[str, Any], **fields: Any) -> dict[str, Any]:
    ratio = ours["median"] / peer["median"]
    return {**fields, "ours": ours, "peer": peer, "ratio": ratio}


def gemv_rows(
    library: ctypes.CDLL, isa: str, codec: str, where: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every order on one ISA, in one format, with the matrices in RAM or in L2."""
    n = STREAMS[where]
    generator = torch.Generator().manual_seed(0)
    q_NK = torch.randint(-1, 2, (n, COLS), dtype=torch.int8, generator=generator)
    x = torch.randint(-128, 128, (1, COLS), dtype=torch.int8, generator=generator)
    digits = (q_NK.to(torch.int32) + 1) @ x[0].to(torch.int32)
    one = {blocks: in_order(q_NK, codec, blocks, library.trial_width())[None] for blocks in ORDERS}
    for blocks, data in one.items():
        if not torch.equal(gemv(library, codec, blocks, data, n, x, 1)(), digits):
            raise SystemExit(f"packed_order: {isa} {codec} {ORDERS[blocks]} gives wrong products")
    size = one[CHOSEN].numel()
    count, repeats = (arguments.megabytes * 2**20 // size, 1) if where == "RAM" else (1, 400)
    matrices = one[CHOSEN].repeat(count, 1)  # the bytes of one order serve all: only their meaning differs
    runs = {blocks: gemv(library, codec, blocks, matrices, n, x, repeats) for blocks in ORDERS}
    measured = rates(runs, float(n) * COLS * count * repeats, arguments.rounds)
    read = rates(
        {0: lambda: [library.trial_read(matrices.data_ptr(), size * count) for _ in range(repeats)]},
        size * count * repeats,
        arguments.rounds,
    )[0]
    fields = {"what": "gemv", "format": codec, "shape": {"H": COLS, "F": n, "L": 1, "E": count}, "tokens": 1}
    fields |= {"threads": 1, "isa": isa, "precision": "ternary x int8", "unit": "Gweights/s", "resident_in": where}
    fields |= {"read_gigabytes_per_second": read}
    return [row(measured[CHOSEN], peer, **fields, peer_name=ORDERS[blocks]) for blocks, peer in measured.items()]


def gemm_rows(isas: list[str], rounds: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for n, k, tokens in ((1536, 576, 64), (1536, 576, 729), (8960, 1536, 64)):
        generator = torch.Generator().manual_seed(1)
        q_NK = torch.randint(-1, 2, (n, k), dtype=torch.int8, generator=generator)
        x_q = torch.randint(-128, 128, (tokens, k), dtype=torch.int8, generator=generator)
        wide, narrow = x_q.to(torch.bfloat16), q_NK.t().to(torch.bfloat16)
        x, scale, q_KN = x_q.float(), torch.rand(()), q_NK.t()
        packed = {codec: kernels.pack(q_NK, codec) for codec in FORMATS}

        def ours(isa: str, codec: str, arguments: Any) -> Callable[[], Any]:
            def run() -> Any:
                kernels.select_isa(isa)
                return kernels.linear(*arguments, threads=1)

            return run

        runs: dict[Any, Callable[[], Any]] = {
            (isa, codec): ours(isa, codec, (packed[codec], scale, codec, n, k, 0, "tensor", x))
            for isa in isas
            for codec in FORMATS
        }
        runs["torch bf16 mm"] = lambda wide=wide, narrow=narrow: wide @ narrow
        runs["torch._int_mm"] = lambda x_q=x_q, q_KN=q_KN: torch._int_mm(x_q, q_KN)
        measured = rates(runs, float(n) * k * tokens, rounds)
        for isa in isas:
            for codec in FORMATS:
                for peer in ("torch bf16 mm", "torch._int_mm"):
                    rows.append(
                        row(
                            measured[isa, codec],
                            measured[peer],
                            what="gemm",
                            format=codec,
                            shape={"H": k, "F": n, "L": 1, "E": 1},
                            tokens=tokens,
                            threads=1,
                            isa=isa,
                            precision="ternary x int8",
                            peer_name=peer,
                            unit="GMAC/s",
                        )
                    )
    kernels.select_isa(None)
    return rows


def git_state() -> str:
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(line.split("\t: ", 1) if "\t: " in line else (line, "") for line in reversed(lines))
    names = {key.strip(): value for key, value in fields.items()}
    return {"cpu": names.get("model name", platform.processor()), "system": platform.platform()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    isas = [isa for isa in kernels.info()["isas"] if isa in FLAGS]
    with tempfile.TemporaryDirectory() as folder:
        libraries = {isa: compiled(isa, Path(folder)) for isa in isas}
        rows = [
            line
            for isa, library in libraries.items()
            for codec in FORMATS
            for where in STREAMS
            for line in gemv_rows(library, isa, codec, where, arguments)
        ]
    rows += gemm_rows(isas, 5 * arguments.rounds)
    versions = {"mote": mote.__version__, "torch": torch.__version__, "numpy": np.__version__}
    report = {"schema": 1, "machine": machine(), "versions": versions, "git": git_state(), "rows": rows}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    for r in rows:
        print(
            f"{r['what']:5} {r['isa']:10} {r['format']:5} T={r['tokens']:<4} {r['shape']['F']}x{r['shape']['H']}"
            f" {r.get('resident_in', ''):3}"
            f"  ours {r['ours']['median']:6.1f}  {r['peer_name']:16} {r['peer']['median']:6.1f} {r['unit']:10}"
            f"  ratio {r['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
