"""Dense checkpoints of tiny models on disk, to plan from and to make real ones of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mote.checkpoint.header import PlannedTensor
from mote.plan.skeleton import Skeleton, of_config

SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}


@pytest.fixture
def dense(tiny: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """`dense(family, **text)`: a folder with the tiny model in bf16."""

    def write(family: str, **text: Any) -> Path:
        import torch

        out = tmp_path / f"dense-{family}"
        tiny(family, **text).to(torch.bfloat16).save_pretrained(out)
        return out

    return write


@pytest.fixture
def skeleton() -> Skeleton:
    """A language model without eyes, planned from its config."""
    return of_config(SHAPE, "small", "a test")


def tensors(found: Skeleton) -> dict[str, PlannedTensor]:
    """Its tensors by name."""
    return {tensor.name: tensor for tensor in found.tensors}
