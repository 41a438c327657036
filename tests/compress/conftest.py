"""A little mix with pictures, in the words of the tiny processor, and checkpoints of every state to quantise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mote


@pytest.fixture
def write_mix(tmp_path: Path) -> Callable[..., Path]:
    """`write_mix(count=12, pictures=True)`: a LLaVA-style file of so many conversations."""

    def write(count: int = 12, *, pictures: bool = True) -> Path:
        from PIL import Image

        folder = tmp_path / "mix"
        folder.mkdir(exist_ok=True)
        rows: list[dict[str, Any]] = []
        for index in range(count):
            words = " ".join(f"word{11 + (7 * index + k) % 80}" for k in range(4 + index % 3))
            turns = [{"from": "human", "value": "What is this"}, {"from": "gpt", "value": words}]
            row: dict[str, Any] = {"id": str(index), "conversations": turns}
            if pictures and index % 4:
                Image.linear_gradient("L").resize((30 + index, 28)).convert("RGB").save(folder / f"{index}.png")
                row["image"] = f"{index}.png"
            rows.append(row)
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "train.jsonl"

    return write


KINDS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "mote": {"config": "mote", "initialise": "random"},
    "moe_llava": {"config": "moe-llava", "initialise": "random"},
}


@pytest.fixture
def source(tiny: Any, processor: Any, tmp_path: Path) -> Callable[..., Path]:
    """`source(family, kind)`: a checkpoint directory, dense, up-cycled with ternary experts, or as MoE-LLaVA."""

    def make(family: str, kind: str, **text: Any) -> Path:
        dense = tmp_path / "dense"
        tiny(family, **text).save_pretrained(dense)
        (processor if family in ("llava", "aya_vision") else processor.tokenizer).save_pretrained(dense)
        options = KINDS[kind]
        return dense if options is None else Path(mote.upcycle(dense, tmp_path / kind, **options))

    return make
