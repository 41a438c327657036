"""What a run ran on: versions, source, processor, memory; read without importing any heavy library."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import mote

LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy", "pillow")
CPU_FEATURES = (
    *("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512vbmi", "avx512_bf16", "avx_vnni"),
    *("amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve", "bf16"),
)
"""Flags that decide which kernels run; others are left out."""
_BF16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}
_RESET_PEAK = "5"


def record_environment() -> dict[str, Any]:
    """JSON-able description: versions of mote, python and `LIBRARIES`, git hash, platform, processor,
    threads.

    `git` is the commit of the mote source, with "-dirty" after it when files differ, or None for an
    installed wheel.
    """
    versions: dict[str, str | None] = {"mote": mote.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "versions": versions,
        "git": source_hash(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


@functools.cache
def source_hash() -> str | None:
    """Commit of the git checkout that tracks mote's own source; None outside of one or without git."""
    folder = Path(mote.__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # A virtual environment may lie inside somebody else's repository: the file itself must be tracked.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def processor_has_bf16() -> bool:
    """Whether Linux lists instructions for products in bf16 among those of this machine's processor; elsewhere no."""
    return not _BF16_FEATURES.isdisjoint(_processor()["features"])


def _processor() -> dict[str, Any]:
    model, flags = platform.processor() or platform.machine(), set[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    return {"model": model, "features": [name for name in CPU_FEATURES if name in flags]}


def reset_peak_memory() -> None:
    """Start a new peak, where the system can (Linux), so that a stage does not report an earlier stage's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Peak bytes since `reset_peak_memory`: "host" (resident), "device" once CUDA is in use."""
    peak = {"host": _peak_resident()}
    if (cuda := _cuda()) is not None:
        peak["device"] = int(cuda.max_memory_allocated())
    return peak


def _peak_resident() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cuda() -> Any | None:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
