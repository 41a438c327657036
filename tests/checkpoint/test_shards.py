"""Opening and reading: what a checkpoint directory may look like, and what is refused with which words."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.shards import Checkpoint, count_not_finite
from mote.errors import CheckpointError
from mote.ternary.format import WeightFormat

GROUPED = WeightFormat(granularity="group", group=16)
MIXTURES = {
    "upcycled": MoteConfig(layers=(0, 2)),
    "gated": MoteConfig(layers=(1,), combine="gated"),
    "baseline": MoteConfig(
        layers=(0, 1, 2),
        shared_expert=False,
        top_k=2,
        routed=WeightFormat(quantizer="none", activation="none"),
    ),
    "packed": MoteConfig(layers=(0, 2), state="packed", codec="2bit"),
    "packed_groups": MoteConfig(layers=(0, 2), state="packed", codec="base3", routed=GROUPED),
    "packed_shared": MoteConfig(
        layers=(1,),
        state="packed",
        codec="2bit",
        shared=WeightFormat(granularity="row"),
        hidden_size=24,
        ffn_size=40,
    ),
}
Write = Callable[..., Checkpoint]


def edit_config(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((root / "config.json").read_text())
    edit(config)
    (root / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", MIXTURES)
def test_opens_every_state(write_mixture: Write, name: str) -> None:
    mote = MIXTURES[name]
    checkpoint = write_mixture(mote)
    again = Checkpoint.open(checkpoint.root)
    assert again.mote == mote
    assert again.state == mote.state
    assert again == checkpoint


def test_dense_opens_without_mote_files(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "odd": torch.tensor([1, 2, 3], dtype=torch.uint8)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.state == "dense"
    assert checkpoint.lineage is None
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), tensor)
    identity = checkpoint.identity()
    assert identity.startswith("foreign-")
    save_file({**tensors, "odd": torch.tensor([1, 2, 4], dtype=torch.uint8)}, tmp_path / "model.safetensors")
    assert Checkpoint.open(tmp_path).identity() != identity


def test_reading_does_not_change_the_file(write_mixture: Write) -> None:
    checkpoint = write_mixture(None)
    before = (checkpoint.root / "model.safetensors").read_bytes()
    checkpoint.read("model.norm.weight").zero_()
    assert (checkpoint.root / "model.safetensors").read_bytes() == before
    assert checkpoint.read("model.norm.weight").abs().sum() > 0


def test_unaligned_tensors_read(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   '
    assert len(header) % 4 == 1
    data = torch.tensor([1.5, -2.0])
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data.numpy().tobytes())
    (tmp_path / "config.json").write_text("{}")
    assert torch.equal(Checkpoint.open(tmp_path).read("a"), data)


def test_not_finite_is_counted_and_refused(write_tensors: Write) -> None:
    bad = torch.ones(4, 5, dtype=torch.bfloat16)
    bad[1, 2], bad[3, 4] = float("nan"), float("-inf")
    checkpoint = write_tensors({"layer.weight": bad, "ids": torch.arange(3)})
    assert count_not_finite(bad) == 2
    assert checkpoint.read("layer.weight").isnan().sum() == 1
    assert checkpoint.read("ids", finite=True).tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match=r"'layer.weight' holds 2 NaN or Inf of 20"):
        checkpoint.read("layer.weight", finite=True)


def test_unknown_tensor(write_mixture: Write) -> None:
    with pytest.raises(CheckpointError, match="holds no tensor 'nothing'"):
        write_mixture(None).read("nothing")


def test_refuses_directories_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint.open(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is not a directory"):
        Checkpoint.open(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds neither"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        Checkpoint.open(tmp_path)


class Bomb:
    """Pickles to a call that leaves a trace when anybody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_never_unpickles(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    with pytest.raises(CheckpointError, match="convert the checkpoint to safetensors"):
        Checkpoint.open(tmp_path)
    assert not (tmp_path / "trace").exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert (tmp_path / "trace").exists(), "the bomb would have been seen"


def test_refuses_other_quantisation(write_mixture: Write) -> None:
    root = write_mixture(None).root
    edit_config(root, lambda config: config.update(quantization_config={"quant_method": "gptq"}))
    with pytest.raises(CheckpointError, match="quantised by 'gptq'"):
        Checkpoint.open(root)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 99}, "format_version 99"),
        ({"surprise": 1}, "unknown keys"),
        ({"layers": [0]}, "routers stand in layers"),
        ({"layers": [0, 0]}, "ascending"),
        ({"layers": ["0"]}, "indices"),
        ({"layers": 3}, "not iterable"),
        ({"num_experts": 3}, "not F32"),
        ({"num_experts": "4"}, "whole number"),
        ({"hidden_size": 25, "ffn_size": 40}, "not F32"),
        ({"shared_expert": False, "hidden_size": 24, "ffn_size": 65}, "not U8"),
        ({"codec": "base3"}, "not U8"),
        ({"codec": "zip"}, "unknown"),
        ({"combine": "gated", "state": "upcycled", "codec": None}, "lacks tensor"),
        ({"routed": {"granularity": "row"}}, "scale"),
        ({"routed": {"granularity": "group", "group": 7}}, "multiple of 16"),
        ({"routed": {"surprise": 1}}, "surprise"),
        ({"routed": []}, "argument"),
    ],
)
def test_refuses_a_config_that_does_not_fit(write_mixture: Write, changes: dict[str, Any], words: str) -> None:
    root = write_mixture(MIXTURES["packed"]).root
    edit_config(root, lambda config: config["quantization_config"].update(changes))
    with pytest.raises(CheckpointError, match=words) as caught:
        Checkpoint.open(root)
    assert str(root) in str(caught.value)


def test_refuses_packed_experts_whose_config_was_lost(write_mixture: Write) -> None:
    root = write_mixture(MIXTURES["packed"]).root
    edit_config(root, lambda config: config.pop("quantization_config"))
    with pytest.raises(CheckpointError, match="has lost quantization_config"):
        Checkpoint.open(root)


def test_refuses_scales_that_are_not_finite(write_mixture: Write) -> None:
    checkpoint = write_mixture(MIXTURES["packed"])
    info = checkpoint.info("model.layers.2.mlp.experts.up_proj_scale")
    path = checkpoint.root / info.shard
    raw = bytearray(path.read_bytes())
    raw[info.offset : info.offset + 4] = torch.tensor([float("inf")]).numpy().tobytes()
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"layers\.2.*up_proj_scale.*NaN or Inf"):
        Checkpoint.open(checkpoint.root)


def test_shards_truncated_missing_or_mixed(write_mixture: Write, tmp_path: Path) -> None:
    good = write_mixture(None, max_shard_bytes=3000).root
    shards = sorted(path.name for path in good.glob("*.safetensors"))
    assert len(shards) > 3

    def broken(name: str) -> Path:
        return Path(shutil.copytree(good, tmp_path / name))

    cut = broken("cut")
    (cut / shards[1]).write_bytes((cut / shards[1]).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{shards[1]}.*truncated"):
        Checkpoint.open(cut)
    gone = broken("gone")
    (gone / shards[2]).unlink()
    with pytest.raises(CheckpointError, match=f"{shards[2]}.*cannot be read"):
        Checkpoint.open(gone)
    swapped = broken("swapped")
    shutil.copyfile(good / shards[0], swapped / shards[1])
    with pytest.raises(CheckpointError, match="which the index does not place there"):
        Checkpoint.open(swapped)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        (None, "no weight_map"),
        ({}, "no weight_map"),
        ({"a": 3}, "no weight_map"),
        ({"a": "../secret.safetensors"}, "not a safetensors file of this directory"),
        ({"a": "/etc/passwd"}, "not a safetensors file of this directory"),
        ({"a": "weights.bin"}, "not a safetensors file of this directory"),
        ({"a": "x.safetensors", "b": "x.safetensors"}, "lacks 'b'"),
    ],
)
def test_refuses_a_lying_index(tmp_path: Path, weight_map: Any, words: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(tmp_path)


def test_a_file_that_shrinks_after_opening_is_an_error(write_mixture: Write) -> None:
    checkpoint = write_mixture(None)
    (checkpoint.root / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read("model.norm.weight")
