"""The fp32 kernels behind csrc/isa/isa.h, driven from C++ (float_driver.cpp): they have no door of their own."""

import platform
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-I", str(ROOT / "csrc")]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
SIMDE = Path("/usr/include/simde/x86/avx512.h")


def build(out: Path, emulated: bool) -> Path:
    """Compiles the driver with every ISA's kernels for this processor; `emulated`: AVX512 by way of SIMDe."""
    sources: dict[str, list[str]] = {"tests/kernels/float_driver.cpp": [], "tests/kernels/float_driver_attend.cpp": []}
    sources["csrc/isa/floats_scalar.cpp"] = []
    flags = list(FLAGS)
    if platform.machine() == "aarch64":
        flags.append("-DMOTE_ARM")
        sources["csrc/isa/floats_neon.cpp"] = []
    if platform.machine() == "x86_64":
        flags.append("-DMOTE_X86")
        sources["csrc/isa/floats_avx2.cpp"] = ["-mavx2", "-mfma"]
        shim = ["-mavx2", "-mfma", "-I", str(ROOT / "tests/kernels/emulated")]
        sources["csrc/isa/floats_avx512.cpp"] = shim if emulated else AVX512
    if emulated:
        flags.append("-DMOTE_EMULATE_AVX512")
    objects = []
    for source, own in sources.items():
        objects.append(str(out / f"{Path(source).stem}.o"))
        subprocess.run(["c++", *flags, *own, "-c", str(ROOT / source), "-o", objects[-1]], check=True)
    subprocess.run(["c++", *objects, "-o", str(out / "float_driver")], check=True)
    return out / "float_driver"


def test_float_kernels_equal_plain_code_and_each_other(tmp_path: Path) -> None:
    done = subprocess.run([build(tmp_path, emulated=False)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 failed on scalar" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64" or not SIMDE.exists(), reason="needs x86-64 and libsimde-dev")
def test_emulated_avx512_gives_the_same_bits(tmp_path: Path) -> None:
    done = subprocess.run([build(tmp_path, emulated=True)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "avx512" in done.stdout
