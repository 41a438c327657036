"""Tiny checkpoints of every family and state, with processor, and a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mote


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.radial_gradient("L").resize((40, 30)).convert("RGB").save(path)
    return path


@pytest.fixture
def checkpoints(tiny: Any, processor: Any, tmp_path: Path) -> Callable[..., tuple[Path, Path, Path]]:
    """`checkpoints(family, codec="base3", text={}, **upcycle)`: directories dense, up-cycled and packed."""

    def make(
        family: str, codec: str = "base3", text: dict[str, Any] | None = None, **upcycle: Any
    ) -> tuple[Path, Path, Path]:
        dense = tmp_path / "dense"
        tiny(family, **(text or {})).save_pretrained(dense)
        (processor if family in ("llava", "aya_vision") else processor.tokenizer).save_pretrained(dense)
        upcycled = mote.upcycle(dense, tmp_path / "upcycled", **upcycle)
        return dense, upcycled, mote.pack(upcycled, tmp_path / "packed", codec=codec)

    return make
