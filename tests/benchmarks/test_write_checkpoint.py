"""The checkpoints that the benchmarks write are ones that everything else opens."""

from pathlib import Path

import pytest
import torch

from benchmarks.peers.write_checkpoint import Model, write
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.verify import verify


@pytest.mark.parametrize(
    "model",
    [
        Model(shape="tiny", experts=4),
        Model(shape="tiny", experts=2, codec="2bit", linear="bf16", head="int8"),
        Model(shape="tiny", experts=0),
        Model(shape="tiny", experts=0, linear="bf16", head="bf16"),
    ],
)
def test_it_verifies_and_its_sizes_are_those_announced(model: Model, tmp_path: Path) -> None:
    path = write(model, tmp_path)
    assert verify(path).problems == []
    opened = Checkpoint.open(path)
    held = sum(info.nbytes for name, info in opened.tensors.items() if ".mlp." in name)
    assert held == model.ffn_bytes
    unread = (model.experts - 1) / model.experts if model.experts else 0
    routed = sum(info.nbytes for name, info in opened.tensors.items() if ".experts." in name)
    assert model.token_bytes == sum(info.nbytes for info in opened.tensors.values()) - unread * routed


def test_the_strips_of_a_matrix_differ(tmp_path: Path) -> None:
    opened = Checkpoint.open(write(Model(shape="tiny", experts=4), tmp_path))
    packed = opened.read("model.layers.0.mlp.experts.gate_proj_packed")
    assert not torch.equal(packed[0], packed[0].roll(1, 0))
