"""The streaming writer: what it writes others read, in bounded memory, and no failure costs anything."""

import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mote.checkpoint.contract import CodecName, MoteConfig
from mote.checkpoint.environment import peak_memory, reset_peak_memory
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.writer import seal_checkpoint, write_checkpoint
from mote.errors import CheckpointError, FormatError

Write = Callable[..., Checkpoint]
MIB = 1 << 20

KILLED = """
import os, signal, sys
import torch
from pathlib import Path
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.writer import seal_checkpoint, write_checkpoint

def produce(name):
    if name == "w3":
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.ones(1 << 18)

plan = [PlannedTensor(f"w{i}", "F32", (1 << 18,)) for i in range(6)]
write_checkpoint(
    sys.argv[1], config={}, tensors=plan, produce=produce, lineage=Provenance.start("killed"), force=True,
    max_shard_bytes=1 << 21,
)
"""


def some_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "float": torch.randn(3, 5),
        "half": torch.randn(2, 8, 7).half(),
        "brain": torch.randn(64, 64).bfloat16(),
        "transposed": torch.randn(6, 4).t(),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "bytes": torch.randint(0, 255, (7,), dtype=torch.uint8),
        "signs": torch.randint(-9, 9, (5,), dtype=torch.int8),
        "flags": torch.tensor([True, False]),
        "ids": torch.arange(4),
        "eighth": torch.randn(9).to(torch.float8_e4m3fn),
    }


def raw(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 100])
def test_safetensors_reads_what_we_write(write_tensors: Write, max_shard_bytes: int) -> None:
    tensors = some_tensors()
    checkpoint = write_tensors(tensors, max_shard_bytes=max_shard_bytes)
    theirs: dict[str, Tensor] = {}
    for shard in checkpoint.shards:
        theirs |= load_file(checkpoint.root / shard)
    assert (len(checkpoint.shards) > 1) == (max_shard_bytes == 100)
    assert theirs.keys() == checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        for read in (theirs[name], checkpoint.read(name)):
            assert read.dtype == tensor.dtype
            assert read.shape == tensor.shape
            assert torch.equal(raw(read), raw(tensor))


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 3000])
def test_transformers_loads_what_we_write(write_tensors: Write, max_shard_bytes: int) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=32, num_hidden_layers=2, tie_word_embeddings=True, **sizes)
    model = LlamaForCausalLM(config).eval()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    checkpoint = write_tensors(
        tensors,
        config={**config.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": "float32"},
        max_shard_bytes=max_shard_bytes,
    )
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint.root).eval()
    ids_BT = torch.tensor([[1, 5, 7, 30]])
    with torch.no_grad():
        assert torch.equal(loaded(ids_BT).logits, model(ids_BT).logits)


@pytest.mark.parametrize("codec", ["2bit", "base3"])
def test_packed_tensors_start_on_64_bytes(write_mixture: Write, codec: CodecName) -> None:
    checkpoint = write_mixture(MoteConfig(layers=(0, 1, 2), state="packed", codec=codec), max_shard_bytes=9000)
    packed = [info for info in checkpoint.tensors.values() if info.name.endswith("_packed")]
    assert len(packed) == 9
    assert all(info.offset % 64 == 0 for info in packed)
    assert all(checkpoint.read(info.name).data_ptr() % 64 == 0 for info in packed)


def test_side_files_are_carried_and_weights_are_not(write_tensors: Write, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "additional_chat_templates").mkdir(parents=True)
    carried = (
        *(
            "tokenizer.json",
            "tokenizer_config.json",
            "tokenizer.model",
            "merges.txt",
            "preprocessor_config.json",
        ),
        *("processor_config.json", "generation_config.json", "chat_template.jinja", "LICENSE"),
        "additional_chat_templates/tool.jinja",
    )
    left = (
        "model.safetensors",
        "pytorch_model.bin",
        "modeling_evil.py",
        "config.json",
        "mote.json",
        "README.md",
    )
    for name in (*carried, *left):
        (source / name).write_text(name)
    checkpoint = write_tensors({"a": torch.zeros(2)}, carry_from=source, files={"notes.txt": "hello"})
    assert {name: (checkpoint.root / name).read_text() for name in carried} == {name: name for name in carried}
    written = {p.relative_to(checkpoint.root).as_posix() for p in checkpoint.root.rglob("*") if p.is_file()}
    assert written == {*carried, "notes.txt", "config.json", "mote.json", "model.safetensors"}
    assert (checkpoint.root / "config.json").read_text() != "config.json"
    lineage = checkpoint.lineage
    assert lineage is not None
    assert set(lineage.files) | set(lineage.shards) == written - {"mote.json"}


@pytest.mark.parametrize("name", ["../x", "a/b", "mote.json", "more.safetensors"])
def test_side_files_stay_inside(write_tensors: Write, tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="not a name for a side file"):
        write_tensors({"a": torch.zeros(2)}, files={name: "x"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "made",
    [
        torch.zeros(3),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(2, 1),
        torch.zeros(2, dtype=torch.int32),
    ],
)
def test_a_tensor_not_as_planned(write_tensors: Write, tmp_path: Path, made: Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"'a' was planned as F32\[2\]"):
        write_tensors({"a": torch.zeros(2)}, produce=lambda name: made)
    assert list(tmp_path.iterdir()) == []


def test_refuses_plans_that_no_file_can_hold(tmp_path: Path) -> None:
    twice = [PlannedTensor("a", "F32", (1,))] * 2
    for plan in ([], twice, [PlannedTensor("__metadata__", "F32", (1,))]):
        with pytest.raises(CheckpointError, match="tensors to write"):
            write_checkpoint(
                tmp_path / "x",
                config={},
                tensors=plan,
                produce=lambda name: torch.zeros(1),
                lineage=Provenance.start("test"),
            )


def test_what_does_not_open_does_not_replace(write_mixture: Write, tmp_path: Path) -> None:
    good = write_mixture(None)
    other = torch.zeros(3)
    config = {
        "model_type": "x",
        "quantization_config": MoteConfig(layers=(0,), hidden_size=4, ffn_size=4).to_dict(),
    }
    with pytest.raises(CheckpointError, match="routers stand in layers"):
        write_checkpoint(
            good.root,
            config=config,
            tensors=[PlannedTensor("a", "F32", tuple(other.shape))],
            produce=lambda name: other,
            lineage=Provenance.start("test"),
            force=True,
        )
    assert Checkpoint.open(good.root) == good
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_sealing_what_save_pretrained_wrote(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = seal_checkpoint(tmp_path, Provenance.start("train"))
    assert checkpoint.lineage is not None
    assert checkpoint.lineage.verb == "train"
    assert set(checkpoint.lineage.files) == {"config.json"}
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        seal_checkpoint(tmp_path, Provenance.start("train"))


def test_a_checkpoint_never_replaces_its_own_input(write_mixture: Write) -> None:
    first = write_mixture(None)
    files = {path.name: path.read_bytes() for path in first.root.iterdir()}
    for out in (first.root, first.root / "inside"):
        with pytest.raises(CheckpointError, match=r"is the input .* or lies in it; choose another --out"):
            write_checkpoint(
                out,
                config=first.config,
                tensors=[PlannedTensor(info.name, info.dtype, info.shape) for info in first.tensors.values()],
                produce=first.read,
                lineage=Provenance.start("copy", parent=first),
                carry_from=first.root,
                force=True,
            )
    assert {path.name: path.read_bytes() for path in first.root.iterdir()} == files


def test_errors_of_the_producer_pass_and_leave_nothing(write_tensors: Write, tmp_path: Path) -> None:
    def produce(name: str) -> Tensor:
        raise FormatError("boom")

    with pytest.raises(FormatError, match="boom"):
        write_tensors({"a": torch.zeros(2)}, produce=produce)
    assert list(tmp_path.iterdir()) == []


def test_killed_writer_leaves_the_output_intact(write_mixture: Write, tmp_path: Path) -> None:
    good = write_mixture(None)
    done = subprocess.run([sys.executable, "-c", KILLED, str(good.root)], capture_output=True, timeout=50)
    assert done.returncode == -9, done.stderr.decode()
    (partial,) = (path for path in tmp_path.iterdir() if path != good.root)
    assert (partial / "model-00001-of-00003.safetensors").stat().st_size > 2 * MIB
    assert Checkpoint.open(good.root) == good
    write_mixture(None, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_file_limit_in_the_middle_of_a_shard(write_mixture: Write, write_tensors: Write, tmp_path: Path) -> None:
    good = write_mixture(None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        with pytest.raises(CheckpointError, match=r"model: cannot be written: File too large") as caught:
            write_tensors({f"w{i}": torch.ones(1 << 16) for i in range(8)}, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert Checkpoint.open(good.root) == good
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 4 MiB, where this process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "mote-test", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs privileges")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_disk_that_fills_up(small_disk: Path) -> None:
    plan = [PlannedTensor(f"w{i}", "F32", (1 << 16,)) for i in range(8)]

    def fill_the_disk(name: str) -> Tensor:
        if name == "w4":
            (small_disk / "somebody-else").write_bytes(bytes(2 * MIB + (1 << 19)))
        return torch.ones(1 << 16)

    def write(name: str, plan: list[PlannedTensor]) -> Checkpoint:
        lineage = Provenance.start("test")
        return write_checkpoint(small_disk / name, config={}, tensors=plan, produce=fill_the_disk, lineage=lineage)

    good = write("good", plan[:1])
    with pytest.raises(CheckpointError, match=r"new: cannot be written: No space left.*free space"):
        write("new", plan)
    with pytest.raises(CheckpointError, match=r"new: needs [\d.,]+ MB and the disk has"):
        write("new", plan)
    assert sorted(path.name for path in small_disk.iterdir()) == ["good", "somebody-else"]
    assert Checkpoint.open(good.root) == good


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    shape, count = (MIB,), 48

    def copy(name: str, plan: list[PlannedTensor], produce: Callable[[str], Tensor]) -> Checkpoint:
        lineage = Provenance.start("copy")
        return write_checkpoint(
            tmp_path / name,
            config={},
            tensors=plan,
            produce=produce,
            lineage=lineage,
            max_shard_bytes=100 * MIB,
        )

    plan = [PlannedTensor(f"w{i}", "F32", shape) for i in range(count)]
    copy("warm", plan[:1], lambda name: torch.ones(shape))
    reset_peak_memory()
    start = peak_memory()["host"]
    first = copy("made", plan, lambda name: torch.ones(shape))
    made = peak_memory()["host"]
    copy("read", plan, first.read)
    grown = max(made, peak_memory()["host"]) - start
    # The allocator keeps some freed pages; two or three tensors of 4 MiB would do without it.
    assert grown < 48 * MIB, f"{grown / MIB:.0f} MiB for {4 * count} MiB of tensors"


def test_progress_adds_up(write_tensors: Write) -> None:
    seen: list[tuple[int, int]] = []
    tensors = some_tensors()
    write_tensors(tensors, progress=lambda *told: seen.append(told), max_shard_bytes=100)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert sum(count for count, _ in seen) == size
    assert {total for _, total in seen} == {size}


def test_no_warnings_on_the_way(write_tensors: Write) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = write_tensors(some_tensors())
        for name in checkpoint.tensors:
            checkpoint.read(name)
