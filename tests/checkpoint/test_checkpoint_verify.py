"""`verify` finds what opening cannot: changed bytes, illegal digits, weights that are not finite."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.verify import verify
from mote.ternary.codecs import Codec
from mote.ternary.format import WeightFormat

Write = Callable[..., Checkpoint]
PACKED = {
    "2bit": MoteConfig(layers=(0, 2), state="packed", codec="2bit"),
    "base3": MoteConfig(layers=(0, 2), state="packed", codec="base3"),
    "shared": MoteConfig(layers=(0,), state="packed", codec="2bit", shared=WeightFormat(), hidden_size=24, ffn_size=40),
}


def overwrite(checkpoint: Checkpoint, name: str, data: bytes) -> None:
    """Change the first bytes of a tensor in its file."""
    info = checkpoint.info(name)
    path = checkpoint.root / info.shard
    raw = bytearray(path.read_bytes())
    raw[info.offset : info.offset + len(data)] = data
    path.write_bytes(raw)


def forget_hashes(checkpoint: Checkpoint) -> None:
    (checkpoint.root / "mote.json").unlink()


@pytest.mark.parametrize("name", PACKED)
def test_a_sound_checkpoint(write_mixture: Write, name: str) -> None:
    checkpoint = write_mixture(PACKED[name], max_shard_bytes=9000)
    seen: list[tuple[int, int]] = []
    outcome = verify(checkpoint.root, progress=lambda *told: seen.append(told))
    assert outcome.ok, outcome.problems
    assert outcome.notes == []
    assert outcome.tensors == len(checkpoint.tensors)
    assert outcome.bytes == sum(count for count, _ in seen)
    assert {total for _, total in seen} == {outcome.bytes}


def test_any_changed_byte_is_found(write_mixture: Write) -> None:
    checkpoint = write_mixture(None)
    overwrite(checkpoint, "model.norm.weight", b"\x01")
    (problem,) = verify(checkpoint.root).problems
    assert "model.safetensors: was altered" in problem


def test_side_files_count(write_tensors: Write, tmp_path: Path) -> None:
    checkpoint = write_tensors({"a": torch.zeros(2)}, files={"tokenizer.json": "{}", "merges.txt": "a b"})
    (checkpoint.root / "tokenizer.json").write_text("[]")
    (checkpoint.root / "merges.txt").unlink()
    problems = sorted(verify(checkpoint.root).problems)
    assert len(problems) == 2
    assert "merges.txt: is missing" in problems[0]
    assert "tokenizer.json: was altered" in problems[1]


@pytest.mark.parametrize(("codec", "byte"), [("2bit", b"\xff"), ("base3", b"\xf3")])
def test_illegal_digits(write_mixture: Write, codec: str, byte: bytes) -> None:
    checkpoint = write_mixture(PACKED[codec])
    overwrite(checkpoint, "model.layers.2.mlp.experts.down_proj_packed", byte)
    forget_hashes(checkpoint)
    outcome = verify(checkpoint.root)
    (problem,) = outcome.problems
    assert "model.layers.2.mlp.experts.down_proj_packed" in problem
    assert "illegal digit" in problem
    assert "no mote.json" in outcome.notes[0]


def test_a_stack_is_checked_one_expert_at_a_time(write_mixture: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_mixture(PACKED["2bit"])
    name = "model.layers.2.mlp.experts.down_proj_packed"
    data = bytearray(checkpoint.read(name).numpy().tobytes())
    data[-len(data) // 4] = 0xFF  # four experts: the last one's first byte
    overwrite(checkpoint, name, bytes(data))
    forget_hashes(checkpoint)
    dimensions: list[int] = []
    real = Codec.check

    def check(codec: Codec, packed: torch.Tensor, *sizes: int) -> None:
        dimensions.append(packed.ndim)
        real(codec, packed, *sizes)

    monkeypatch.setattr(Codec, "check", check)
    (problem,) = verify(checkpoint.root).problems
    assert f"{name!r}, expert 3: " in problem
    assert set(dimensions) == {3}


def test_illegal_digits_of_a_packed_shared_expert(write_mixture: Write) -> None:
    checkpoint = write_mixture(PACKED["shared"])
    overwrite(checkpoint, "model.layers.0.mlp.up_proj.packed", b"\xff")
    assert any("up_proj.packed" in problem and "digit" in problem for problem in verify(checkpoint.root).problems)


def test_all_problems_at_once(write_mixture: Write) -> None:
    checkpoint = write_mixture(MoteConfig(layers=(1,)))
    nan = torch.tensor([float("nan")])
    overwrite(checkpoint, "model.layers.1.mlp.experts.up_proj", nan.numpy().tobytes())
    overwrite(checkpoint, "model.embed_tokens.weight", nan.bfloat16().view(torch.uint8).numpy().tobytes())
    problems = verify(checkpoint.root).problems
    assert len(problems) == 3
    assert sum("holds 1 NaN or Inf" in problem for problem in problems) == 2
    assert all("\n" not in problem for problem in problems)


def test_what_does_not_open_is_one_problem(write_mixture: Write, tmp_path: Path) -> None:
    root = write_mixture(None).root
    (root / "model.safetensors").write_bytes((root / "model.safetensors").read_bytes()[:-9])
    (problem,) = verify(root).problems
    assert "truncated" in problem
    (problem,) = verify(tmp_path / "absent").problems
    assert "does not exist" in problem


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_lineage_names_nothing_outside(write_mixture: Write, name: str) -> None:
    checkpoint = write_mixture(None)
    path = checkpoint.root / "mote.json"
    plain = json.loads(path.read_text())
    plain["files"][name] = "0" * 64
    path.write_text(json.dumps(plain))
    (problem,) = verify(checkpoint.root).problems
    assert "outside of the checkpoint" in problem


def test_a_damaged_lineage_is_a_problem(write_mixture: Write) -> None:
    root = write_mixture(None).root
    (root / "mote.json").write_text("{")
    (problem,) = verify(root).problems
    assert "mote.json: not valid JSON" in problem
    (root / "mote.json").write_text("{}")
    (problem,) = verify(root).problems
    assert "schema" in problem
