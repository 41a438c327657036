"""Memory of the interpreter and the libraries alone: what `mote.checkpoint.resident.LIBRARY_BYTES` stands for.

python -m benchmarks.libraries CHECKPOINT [--picture FILE]

A fresh process opens the checkpoint in the engine, asks once if there is a picture, and what is mapped or computed for
the model is taken off its resident bytes. Linux only.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from mote.checkpoint.resident import LIBRARY_BYTES, resident
from mote.checkpoint.shards import Checkpoint

PROGRAM = """
import json, sys
def status():
    lines = open("/proc/self/status").read().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "Rss"))}
found = {"start": status()}
import mote.run.engine
found["imports"] = status()
engine = mote.load(sys.argv[1], threads=1)
found["opened"] = status()
if sys.argv[2]:
    engine.ask(sys.argv[2], "What is this?", max_new_tokens=16)
    found["asked"] = status()
print(json.dumps(found))
"""


def main() -> None:
    """Prints resident bytes after each step and what is left for the libraries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--picture", default="")
    arguments = parser.parse_args()
    command = [sys.executable, "-c", PROGRAM, str(arguments.checkpoint), arguments.picture]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    for step, status in found.items():
        print(f"{step:<10}{status['VmRSS'] / 2**20:8.1f} MiB")
    checkpoint = Checkpoint.open(arguments.checkpoint)
    needs = resident(checkpoint.tensors.values(), checkpoint.mote, context=64, eyes=bool(arguments.picture))
    # Opening reads a page here and there of the weights; a question reads them all.
    left = found["asked"]["VmRSS"] - (needs.total - needs.libraries) if arguments.picture else found["opened"]["VmRSS"]
    print(f"libraries {left / 2**20:8.1f} MiB; LIBRARY_BYTES is {LIBRARY_BYTES / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
