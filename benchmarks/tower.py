"""Seconds from a picture to what the language model reads, in each engine: the vision tower of the paper's shape,
SigLIP so400m/14 at 378 pixels, and LLaVA's connector, with random weights.

Ours is INT8 on our kernels, as `mote pack --tower int8` stores it, inside of torch, and so is the connector's bf16;
beside it torch's own bf16 (fp32 on a processor that does not multiply bf16), in turns. llama.cpp's is its own, from
files of `peers/llama_tower.py`, measured right after.
"""

import argparse
import json
import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.peers.llama_tower import IMAGE, PATCH, SIZES
from benchmarks.report import in_turn, seconds

REPEATS = 3


@cache
def tower_seconds(threads: int, width: int, model: Path | None, peers: Path) -> dict[str, list[float]]:
    """Seconds of each of a few pictures, by "mote int8", "torch bf16" or "torch f32", "llama.cpp F16" and so on.

    width: of the language model. model: a GGUF file of one, which llama.cpp wants beside a tower; None leaves llama.cpp
    out.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    commands = [[sys.executable, "-m", "benchmarks.tower", "--width", str(width)]]
    if model is not None:
        theirs = [str(peers / "bin/python"), "-m", "benchmarks.peers.llama_tower", str(model)]
        commands.append([*theirs, "--repeats", str(REPEATS)])
    found: dict[str, list[float]] = {}
    for command in commands:
        command += ["--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"tower: {command[2]} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def measure(threads: int, width: int) -> dict[str, list[float]]:
    """Both of torch's, in turns."""
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from mote.model.precision import computes_in_bf16

    torch.set_num_threads(threads)
    bf16 = computes_in_bf16(torch.device("cpu"))
    config = SiglipVisionConfig(**SIZES, image_size=IMAGE, patch_size=PATCH)
    with torch.inference_mode():
        plain = SiglipVisionModel(config).to(torch.bfloat16 if bf16 else torch.float32).eval()
        sides: dict[str, Any] = {f"torch {'bf16' if bf16 else 'f32'}": plain, "mote int8": _packed(plain)}
        hidden = SIZES["hidden_size"]
        connector = torch.nn.Sequential(
            torch.nn.Linear(hidden, width), torch.nn.GELU(), torch.nn.Linear(width, width)
        ).to(plain.dtype)
        picture = torch.zeros(1, 3, IMAGE, IMAGE, dtype=plain.dtype)

        def see(model: Any) -> None:
            connector(model(picture).last_hidden_state.to(plain.dtype))

        found: dict[str, list[float]] = {name: [] for name in sides}
        for model in sides.values():
            see(model)
        for number in range(REPEATS):
            for name, model in in_turn(sides.items(), number):
                found[name].append(seconds(partial(see, model)))
    return found


def _packed(model: Any) -> Any:
    """A copy whose matrices are packed in INT8, 64 inputs a scale."""
    import copy

    from mote import PackConfig
    from mote.model.linears import install_tower
    from mote.model.packed import PackedLinear

    packed = copy.deepcopy(model)
    install_tower(packed, PackConfig().format("int8"))
    for name, module in packed.named_modules():
        if isinstance(module, PackedLinear):
            module.fill(model.get_submodule(name).weight)
    return packed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=1536)
    a = parser.parse_args()
    print(json.dumps(measure(a.threads, a.width)))
