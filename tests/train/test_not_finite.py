"""Weights that are no numbers: not trained from, and not stored."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mote.errors import CheckpointError, TrainingError
from mote.train import TrainConfig
from mote.train.run import train


def test_a_checkpoint_with_nan_is_named(
    upcycled: Path, data: Path, settings: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    broken = shutil.copytree(upcycled, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.self_attn.q_proj.weight"))
    tensors[name][0, 0] = math.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"broken: .*layers\.1\.self_attn\.q_proj\.weight holds NaN or Inf"):
        train(broken, tmp_path / "out", settings(max_steps=1), stage="experts", data=data)


def test_a_last_step_that_destroys_the_model_is_not_stored(
    upcycled: Path, data: Path, settings: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = settings(max_steps=1, learning_rate=1e30, probe_conversations=4, warmup=0.0)
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train(upcycled, tmp_path / "out", config, stage="experts", data=data)
    assert not (tmp_path / "out").exists()
