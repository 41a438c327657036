"""Where does the time of one question go, from the command to the last word? A new process each time, as a user has it.

python -m benchmarks.ask [--checkpoint runs/small/packed] [--data runs/small/data/test.jsonl]

The questions are the first of a split that no model was trained on, each with its picture. `mote ask` itself tells the
parts; `exit` is what the process takes beyond them, Python's end above all.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, save, summary, warn_if_busy

PROGRAM = "from mote.cli import main; main()"


def asked(checkpoint: Path, image: Path, question: str, threads: int) -> dict[str, float]:
    """Seconds by part, and `all`. Raises SystemExit with the command's last words when it fails."""
    command = [sys.executable, "-c", PROGRAM, "ask", str(checkpoint), str(image), question, "--json"]
    begun = time.perf_counter()
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=False)
    whole = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"ask: {' '.join(command[3:])} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    parts: dict[str, float] = json.loads(done.stdout)["seconds"]
    return {**parts, "exit": whole - sum(parts.values()), "all": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/small/packed"))
    parser.add_argument("--data", type=Path, default=Path("runs/small/data/test.jsonl"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="questions, after one that is not counted")
    parser.add_argument("--out", type=Path, default=RESULTS / "ask.json")
    a = parser.parse_args()
    warn_if_busy("ask")
    from mote.data.conversation import read_conversations
    from mote.kernels.library import info

    found: list[dict[str, float]] = []
    for conversation in [c for c in read_conversations(a.data) if c.image is not None][: a.rounds + 1]:
        assert conversation.image is not None
        found.append(asked(a.checkpoint, conversation.image, conversation.turns[0].question, a.threads))
    shared = {"unit": "s", "threads": a.threads, "isa": info()["isa"]}
    rows: list[dict[str, Any]] = [
        {**shared, "what": part, "ours": summary([each[part] for each in found[1:]])} for part in found[0]
    ]
    print("\n".join(f"{row['what']:12} {row['ours']['median']:.3f} s" for row in rows))
    save(a.out, {}, rows, settings={"rounds": a.rounds, "threads": a.threads})


if __name__ == "__main__":
    main()
