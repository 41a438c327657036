"""Memory that the planner promises is what the engine takes, and who is warned before it runs out."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import mote
from mote.checkpoint import resident as memory
from mote.checkpoint.accounting import component_of
from mote.checkpoint.shards import Checkpoint
from mote.kernels import abi
from mote.model.opening import open_model
from mote.model.precision import widen
from mote.run import decoding

ROOT = Path(__file__).parents[2]


def test_constants_are_the_engines() -> None:
    assert (memory.KV_TOKENS, memory.CHUNK) == (abi.KV_TOKENS, decoding.CHUNK)
    assert set(memory.NUMBER_BYTES) == {"bf16", "f32"}


@pytest.mark.parametrize("family", ["llama", "qwen2", "llava"])
@pytest.mark.parametrize("kv", ["bf16", "f32"])
def test_sums_are_what_the_engine_maps_reads_and_allocates(checkpoints, family, kv) -> None:
    dense, _, packed = checkpoints(family)
    for root in (dense, packed, mote.pack(dense, packed.parent / "int4", shared="int4", attention="int8", head="int4")):
        checkpoint = Checkpoint.open(root)
        engine = mote.load(root, kv=kv)
        tensors = list(checkpoint.tensors.values())
        needs = memory.resident(tensors, checkpoint.mote, context=100, kv=kv, eyes=False)
        assert needs.weights == engine.weights.bytes
        assert needs.cache == 4 * engine.pool.size  # 100 tokens in blocks of 32
        held = sum(array.nbytes for array in engine.weights._held if hasattr(array, "nbytes"))
        turning = engine.weights.decoder.head_dim // 2 * 4
        assert needs.copies == held - turning
        small = [t for t in tensors if component_of(t.name) in ("norms", "routers") or t.name.endswith(".bias")]
        fewer = memory.token_bytes([t for t in tensors if t not in small], checkpoint.mote)
        assert fewer == engine.weights.token_bytes


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_transformers_holds_is_what_is_said(checkpoints, tiny, precision, tmp_path) -> None:
    _, upcycled, _ = checkpoints("llama")
    tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    for root in (upcycled, tmp_path / "bf16"):
        checkpoint, model = Checkpoint.open(root), open_model(root)
        widen(model, precision)
        widened = precision == "fp32"
        needs = memory.loaded(checkpoint.tensors.values(), checkpoint.mote, widened=widened)
        assert needs.copies == sum(parameter.nbytes for parameter in model.parameters())
    assert needs.copies == (2 if widened else 1) * sum(t.nbytes for t in checkpoint.tensors.values())


def test_a_checkpoint_that_does_not_fit_is_warned_of_and_runs(checkpoints, monkeypatch) -> None:
    _, upcycled, packed = checkpoints("llama")
    needs = memory.resident(Checkpoint.open(packed).tensors.values(), Checkpoint.open(packed).mote, context=2048)
    own = needs.own - needs.libraries
    for free, said in ((own + 1, "disk's speed"), (own - 1, "may end this process"), (0, "may end this process")):
        monkeypatch.setattr("mote.checkpoint.resident.available_memory", lambda free=free: free)
        with pytest.warns(UserWarning, match=said) as caught:
            engine = mote.load(packed)
        assert "\n" not in str(caught[0].message)
        assert engine.backend == "native"
    monkeypatch.setattr("mote.checkpoint.resident.available_memory", lambda: 0)
    with pytest.warns(UserWarning, match="may end this process"):
        mote.load(upcycled)


@pytest.mark.parametrize("free", [None, 1 << 40])
def test_nobody_is_warned_otherwise(checkpoints, monkeypatch, free) -> None:
    _, upcycled, packed = checkpoints("qwen2")
    monkeypatch.setattr("mote.checkpoint.resident.available_memory", lambda: free)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mote.load(packed)
        mote.load(upcycled)


def test_free_memory_is_that_of_the_system_or_of_the_control_group(monkeypatch, tmp_path) -> None:
    numbers = {"memory.max": 1000, "memory.current": 700}
    monkeypatch.setattr(memory, "_number", lambda path: numbers.get(Path(path).name))
    assert 300 <= memory.available_memory() < 1 << 30
    assert memory.total_memory() == 1000
    numbers["memory.max"] = None
    monkeypatch.setattr(memory, "_meminfo", lambda key: 5000)
    assert memory.available_memory() == 5000
    monkeypatch.setattr(memory, "_meminfo", lambda key: None)
    assert memory.available_memory() is None


PROGRAM = """
import sys
import mote
engine = mote.load(sys.argv[1], threads=1)
engine.ask(sys.argv[2], "What is this?", max_new_tokens=16)
for line in open("/proc/self/status"):
    if line.startswith("VmRSS"):
        print(int(line.split()[1]) * 1024)
"""


@pytest.mark.slow
def test_a_real_process_takes_what_was_said(picture) -> None:
    packed = ROOT / "runs" / "small" / "packed"
    if not (packed / "model.safetensors").is_file() or not Path("/proc/self/status").exists():
        pytest.skip("make demo has not run here")
    command = [sys.executable, "-c", PROGRAM, str(packed), str(picture)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=env)
    checkpoint = Checkpoint.open(packed)
    needs = memory.resident(checkpoint.tensors.values(), checkpoint.mote, context=64, image_tokens=16)
    assert int(done.stdout) == pytest.approx(needs.total, rel=0.1)
