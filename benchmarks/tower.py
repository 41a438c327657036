"""The vision tower of the paper's shape, SigLIP so400m/14 at 378 pixels with random weights: seconds for one picture.

Neither engine has a tower of its own here (ours stays in torch, llama.cpp's lies outside llama-cpp-python), so that the
same seconds count on both sides of a time to the first word.
"""

import json
import os
import subprocess
import sys
from functools import cache

from benchmarks.report import seconds

REPEATS = 3
SIZES = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}


@cache
def tower_seconds(threads: int) -> list[float]:
    """Seconds of each of a few pictures, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tower", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return [float(value) for value in json.loads(done.stdout.splitlines()[-1])]


def measure(threads: int) -> list[float]:
    """Of bf16 weights on a CPU that multiplies them, else of fp32."""
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.set_num_threads(threads)
    bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    config = SiglipVisionConfig(**SIZES, image_size=378, patch_size=14)
    with torch.inference_mode():
        model = SiglipVisionModel(config).to(torch.bfloat16 if bf16 else torch.float32).eval()
        picture = torch.zeros(1, 3, 378, 378, dtype=model.dtype)
        model(picture)
        return [seconds(lambda: model(picture)) for _ in range(REPEATS)]


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
