"""Tiny checkpoints in every state, written by our own writer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mote.checkpoint.contract import MODEL_TYPE, MoteConfig
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.layout import expected_tensors
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.writer import write_checkpoint
from mote.ternary.codecs import CODECS

HIDDEN, FFN, LAYERS = 24, 40, 3
WriteTensors = Callable[..., Checkpoint]


def fill(name: str, shape: tuple[int, ...], mote: MoteConfig | None) -> Tensor:
    """A tensor that its name allows: legal digits in packed ones, positive scales, seeded noise elsewhere."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    if name.endswith(("_packed", ".packed")):
        assert mote is not None
        assert mote.codec is not None
        rows, cols = (HIDDEN, FFN) if "down_proj" in name else (FFN, HIDDEN)
        fmt = mote.routed if ".experts." in name else mote.shared
        q_NK = torch.randint(-1, 2, (*shape[:-3], rows, cols), generator=generator, dtype=torch.int8)
        return CODECS[mote.codec].pack(q_NK, fmt.group)
    if "scale" in name:
        return torch.rand(shape, generator=generator) + 0.5
    return torch.randn(shape, generator=generator)


def mixture_tensors(mote: MoteConfig | None) -> dict[str, Tensor]:
    """All tensors of a small language model, with the mixtures that `mote` describes."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("BF16", (11, HIDDEN)),
        "model.norm.weight": ("BF16", (HIDDEN,)),
        "vision_tower.layers.0.mlp.fc1.weight": ("BF16", (5, 7)),
        "multi_modal_projector.linear_1.weight": ("F32", (6, 5)),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}.mlp."
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = ("BF16", (HIDDEN, HIDDEN))
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = ("BF16", (HIDDEN,))
        if mote is not None and layer in mote.layers:
            for name, (dtypes, shape) in expected_tensors(mote, prefix, HIDDEN, FFN).items():
                shapes[name] = ("BF16" if name.endswith("_proj.weight") else dtypes[0], shape)
        else:
            for matrix in ("gate_proj", "up_proj", "down_proj"):
                rows, cols = (HIDDEN, FFN) if matrix == "down_proj" else (FFN, HIDDEN)
                shapes[f"{prefix}{matrix}.weight"] = ("BF16", (rows, cols))
    return {
        name: fill(name, shape, mote).to({"BF16": torch.bfloat16, "F32": torch.float32}.get(dtype, torch.uint8))
        for name, (dtype, shape) in shapes.items()
    }


@pytest.fixture
def write_tensors(tmp_path: Path) -> WriteTensors:
    """Write tensors as the directory `tmp_path / name`; further arguments go to `write_checkpoint`."""

    def write(tensors: dict[str, Tensor], name: str = "model", **options: Any) -> Checkpoint:
        options.setdefault("config", {"model_type": "llama"})
        options.setdefault("produce", tensors.__getitem__)
        options.setdefault("lineage", Provenance.start("test"))
        plan = [PlannedTensor(key, str(tensor.dtype), tuple(tensor.shape)) for key, tensor in tensors.items()]
        return write_checkpoint(tmp_path / name, tensors=plan, **options)

    return write


@pytest.fixture
def write_mixture(write_tensors: WriteTensors) -> Callable[..., Checkpoint]:
    """Write a tiny checkpoint with the mixtures that a MoteConfig describes (None: dense)."""

    def write(mote: MoteConfig | None, name: str = "model", **options: Any) -> Checkpoint:
        config: dict[str, Any] = {"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN}
        if mote is not None:
            config |= {
                "model_type": MODEL_TYPE,
                "base_model_type": "llama",
                "quantization_config": mote.to_dict(),
            }
        return write_tensors(mixture_tensors(mote), name, config=config, **options)

    return write
