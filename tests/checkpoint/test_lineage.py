"""mote.json: the id stands for all bytes, ancestors survive their directories, facts are recorded."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mote.checkpoint.environment import peak_memory, record_environment, reset_peak_memory, source_hash
from mote.checkpoint.lineage import Lineage, Provenance, canonical_json, seal
from mote.checkpoint.shards import Checkpoint
from mote.errors import CheckpointError
from mote.ternary.format import WeightFormat

Write = Callable[..., Checkpoint]


@dataclass(frozen=True)
class Settings:
    rate: float
    where: Path
    layers: tuple[int, ...]
    fmt: WeightFormat


def test_the_id_is_the_hash_of_the_canonical_file(write_tensors: Write) -> None:
    checkpoint = write_tensors({"a": torch.ones(3)})
    plain = json.loads((checkpoint.root / "mote.json").read_text())
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert checkpoint.identity() == hashlib.sha256(text).hexdigest()
    weights = (checkpoint.root / "model.safetensors").read_bytes()
    assert plain["shards"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}


def test_white_space_and_order_do_not_change_the_id(write_tensors: Write) -> None:
    checkpoint = write_tensors({"a": torch.ones(3)})
    before = checkpoint.identity()
    path = checkpoint.root / "mote.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert checkpoint.identity() == before


def test_the_line_of_ancestors(write_tensors: Write, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    save_file({"a": torch.ones(3)}, foreign / "model.safetensors")
    (foreign / "config.json").write_text("{}")
    root = Checkpoint.open(foreign)
    one = write_tensors({"a": torch.ones(3)}, "one", lineage=Provenance.start("upcycle", parent=root))
    two = write_tensors({"a": torch.ones(3)}, "two", lineage=Provenance.start("pack", parent=one))
    assert one.lineage is not None
    assert two.lineage is not None
    assert one.lineage.parent == root.identity()
    assert two.lineage.parent == one.identity()
    assert two.lineage.ancestors == (("foreign", root.identity()), ("upcycle", one.identity()))


def test_what_a_stage_records(write_tensors: Write) -> None:
    settings = Settings(0.1, Path("x/y"), (1, 2), WeightFormat())
    provenance = Provenance.start("train", config=settings, seed=7, inputs={"data": "abc"})
    time.sleep(0.02)
    lineage = write_tensors({"a": torch.ones(3)}, lineage=provenance).lineage
    assert lineage is not None
    assert lineage.verb == "train"
    assert lineage.seed == 7
    assert lineage.inputs == {"data": "abc"}
    assert lineage.config["where"] == "x/y"
    assert lineage.config["layers"] == [1, 2]
    assert lineage.config["fmt"]["quantizer"] == "ternary"
    assert 0.02 <= lineage.wall_seconds < 60
    assert lineage.peak_memory_bytes["host"] > 1 << 20
    assert lineage.environment["versions"]["torch"].startswith("2.")
    assert lineage.environment["cores"] >= 1
    assert Lineage.from_dict(lineage.to_dict()) == lineage


def test_seal_covers_what_others_wrote(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for name in ("model.safetensors", "config.json", "logs/losses.jsonl", "mote.json"):
        (tmp_path / name).write_text(name)
    lineage = seal(tmp_path, Provenance.start("train"))
    assert set(lineage.shards) == {"model.safetensors"}
    assert lineage.files == {
        name: hashlib.sha256(name.encode()).hexdigest() for name in ("config.json", "logs/losses.jsonl")
    }
    assert Lineage.from_dict(json.loads((tmp_path / "mote.json").read_text())) == lineage


def test_settings_that_json_cannot_hold_are_found_at_the_start() -> None:
    with pytest.raises(TypeError):
        Provenance.start("train", config={"model": object()})


def test_peak_memory_starts_anew() -> None:
    big = torch.ones(32 << 20)
    high = peak_memory()["host"]
    del big
    reset_peak_memory()
    assert peak_memory()["host"] < high - (64 << 20)


def test_a_source_outside_of_git_has_no_hash(tmp_path: Path) -> None:
    # A copy of the package inside a repository that does not track it, as a virtual environment may be.
    import mote

    package = Path(mote.__file__).parent
    (tmp_path / "mote" / "checkpoint").mkdir(parents=True)
    (tmp_path / "mote" / "__init__.py").write_text('__version__ = "0"')
    for name in ("checkpoint/__init__.py", "checkpoint/environment.py"):
        (tmp_path / "mote" / name).write_bytes((package / name).read_bytes())
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    code = "from mote.checkpoint.environment import source_hash; print(source_hash())"
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "None"


def test_environment_is_plain_json() -> None:
    environment = record_environment()
    assert json.loads(canonical_json(environment)) == environment
    assert environment["git"] == source_hash()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema 2"),
        ({"surprise": 1}, "surprise"),
        ({"ancestors": [["one"]]}, "not a lineage"),
        ({"ancestors": 3}, "not a lineage"),
        ({"shards": {"a": 1}}, "shards is not a map of hashes"),
        ({"files": []}, "files is not a map of hashes"),
    ],
)
def test_refuses_other_files(change: dict[str, object], words: str) -> None:
    plain = {**Lineage(verb="pack").to_dict(), **change}
    with pytest.raises(CheckpointError, match=words):
        Lineage.from_dict(plain)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('aé"\\ '),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abé"), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_canonical_json_round_trips(value: object) -> None:
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)
