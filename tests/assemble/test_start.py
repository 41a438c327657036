"""What training changed goes into a small file and back; the file is for one model only and notices any change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mote.assemble import ExtractConfig, StartConfig, apply_start, extract_start
from mote.assemble.start_file import RECORD_KEY, decode, encode, encoded_bytes, part_of, read_start
from mote.checkpoint.lineage import Provenance, file_hash
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.verify import verify
from mote.checkpoint.writer import seal_checkpoint
from mote.errors import CheckpointError, MoteError, RecipeError

EVERYTHING = ExtractConfig(max_bytes=10**9, max_rank=10**6, factors="float32", connector="float32")
Pair = tuple[Path, Path]


def saved(model: Any, folder: Path, verb: str, parent: Path | None = None) -> Path:
    folder.mkdir()
    model.save_pretrained(folder, max_shard_size="30KB")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    before = None if parent is None else Checkpoint.open(parent)
    seal_checkpoint(folder, Provenance.start(verb, parent=before))
    return folder


@torch.no_grad()
def trained(model: Any, rank: int = 0) -> Any:
    """Moves what stages I and II move; matrices of the language model by a change of `rank` (0: full)."""
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        part, change = part_of(name), torch.randn_like(parameter) * 0.05
        if part == "vision_tower" or "embed_tokens" in name or "lm_head" in name:
            continue
        if part == "language_model" and parameter.ndim == 2 and rank:
            change = torch.randn(parameter.shape[0], rank) @ torch.randn(rank, parameter.shape[1]) * 0.05
        parameter.add_(change.to(parameter.dtype))
    return model


@pytest.fixture
def pair(tiny: Callable[..., Any], tmp_path: Path) -> Pair:
    """The demo's family before and after training, fp32."""
    base = saved(tiny("aya_vision"), tmp_path / "base", "assemble")
    return base, saved(trained(tiny("aya_vision")), tmp_path / "dense", "train instruct", base)


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    opened = Checkpoint.open(checkpoint)
    return {name: opened.read(name) for name in opened.tensors}


def test_at_full_rank_the_dense_model_comes_back(family: str, tiny: Callable[..., Any], tmp_path: Path) -> None:
    base = saved(tiny(family), tmp_path / "base", "assemble")
    dense = saved(trained(tiny(family)), tmp_path / "dense", "train instruct", base)
    record = extract_start(base, dense, tmp_path / "all.safetensors", EVERYTHING)
    assert record["kept"] == pytest.approx(1)
    config = StartConfig(source=str(tmp_path / "all.safetensors"))
    started = apply_start(base, tmp_path / "started", config, max_shard_bytes=30_000)
    before, expected, found = tensors(base), tensors(dense), tensors(started.root)
    assert found.keys() == before.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-6, msg=name)
    moved = [name for name in before if not torch.equal(before[name], found[name])]
    assert {part_of(name) for name in moved} >= {"language_model"}
    assert not [name for name in moved if part_of(name) == "vision_tower"]
    assert verify(started.root).problems == []
    assert (started.root / "chat_template.jinja").read_text() == "{{ messages }}"


def test_the_lineage_says_where_the_weights_came_from(pair: Pair, tmp_path: Path) -> None:
    base, dense = pair
    extract_start(base, dense, tmp_path / "f.safetensors", EVERYTHING)
    started = apply_start(base, tmp_path / "started", StartConfig(source=str(tmp_path / "f.safetensors")))
    lineage, digest = started.lineage, file_hash(tmp_path / "f.safetensors")
    assert lineage is not None
    before, after = Checkpoint.open(base).identity(), Checkpoint.open(dense).identity()
    assert (lineage.verb, lineage.parent, lineage.ancestors) == ("start", before, (("assemble", before),))
    assert lineage.inputs == {"f.safetensors": digest, "assembled model": before, "trained model": after}
    record = json.loads((started.root / "start.json").read_text())
    assert (record["sha256"], record["made_from"]["trained"]) == (digest, after)
    assert record["made_from"]["stages"] == ["assemble", "train instruct"]


@pytest.mark.parametrize(("precision", "error"), [("int8", 1 / 254), ("int4", 1 / 14 + 2**-9), ("bfloat16", 2**-8)])
def test_precisions_cost_what_they_say_and_round_as_they_must(precision: Any, error: float) -> None:
    matrix_NK = torch.randn(5, 132, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-3, 1, 1, 9, 40]]).T
    stored, scale = encode(matrix_NK, precision)
    assert stored.nbytes + (0 if scale is None else scale.nbytes) == encoded_bytes(5, 132, precision)
    back_NK = decode(stored, scale).float()
    # Half a level, of the largest weight that shares the scale; for int4 the rounding of the scale besides.
    share_N = (back_NK - matrix_NK).abs().amax(1) / matrix_NK.abs().amax(1)
    assert bool((share_N < error * 1.0001).all()), share_N
    again, _ = encode(back_NK, precision)
    assert torch.equal(again, stored)


@pytest.mark.parametrize("precision", ["int4", "int8", "bfloat16"])
def test_a_low_rank_change_fits_into_few_bytes(precision: Any, tiny: Callable[..., Any], tmp_path: Path) -> None:
    base = saved(tiny("llama"), tmp_path / "base", "assemble")
    dense = saved(trained(tiny("llama"), rank=2), tmp_path / "dense", "train instruct", base)
    change = sum(int((t - tensors(base)[n]).norm() ** 2) for n, t in tensors(dense).items())
    file = tmp_path / "f.safetensors"
    record = extract_start(base, dense, file, ExtractConfig(max_bytes=60_000, max_rank=2, factors=precision))
    assert record["bytes"] == file.stat().st_size <= 60_000
    assert (record["rank"], record["kept"]) == (2, pytest.approx(1, abs=1e-4))
    started = tensors(apply_start(base, tmp_path / "started", StartConfig(source=str(file))).root)
    lost = sum(float((t - started[n]).norm() ** 2) for n, t in tensors(dense).items())
    assert lost < (0.03 if precision == "int4" else 2e-4) * change


def test_the_bytes_are_kept_and_go_where_they_gain_most(pair: Pair, tmp_path: Path) -> None:
    base, dense = pair
    kept = []
    for number, room in enumerate((35_000, 45_000, 10**9)):
        file = tmp_path / f"{number}.safetensors"
        config = ExtractConfig(max_bytes=room, max_rank=10**6, factors="int8", connector="int8")
        record = extract_start(base, dense, file, config)
        assert record["bytes"] <= room
        kept.append(record["kept"])
    assert kept[0] < kept[1] < kept[2] == pytest.approx(1)
    with pytest.raises(CheckpointError, match=r"connector, norms and names alone take .* raise max_bytes=9,000"):
        extract_start(base, dense, tmp_path / "none", ExtractConfig(max_bytes=9_000))
    with pytest.raises(RecipeError, match="must be above 0"):
        ExtractConfig(max_bytes=0)


def test_another_model_is_refused(pair: Pair, tiny: Callable[..., Any], tmp_path: Path) -> None:
    base, dense = pair
    extract_start(base, dense, tmp_path / "f", EVERYTHING)
    config = StartConfig(source=str(tmp_path / "f"))
    for part, pattern in (("language_model.", "another language model than"), ("vision_tower.", "another vision towe")):
        model = tiny("aya_vision")
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if part in n and p.ndim == 2)[0, 0] += 1
        other = saved(model, tmp_path / part, "assemble")
        with pytest.raises(CheckpointError, match=pattern):
            apply_start(other, tmp_path / "out", config)
    with pytest.raises(CheckpointError, match="another language model"):
        apply_start(dense, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
    model = tiny("aya_vision")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight.zero_()
    fresh = saved(model, tmp_path / "fresh", "assemble")
    found, expected = tensors(apply_start(fresh, tmp_path / "out", config).root), tensors(dense)
    name = next(name for name in found if name.endswith("linear_1.weight"))
    assert torch.equal(found[name], expected[name]), "the connector is replaced whatever it was"


def altered(file: Path, case: str) -> None:
    """Changes a start file in one way; the header stays valid except where the file is cut."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata())
    found = load_file(file)
    name = next(name for name in sorted(found) if name.endswith(".in"))
    if case == "a weight":
        found[name][0, 0] += 1
    elif case == "a name":
        found[name + "x"] = found.pop(name)
    elif case == "the schema":
        metadata[RECORD_KEY] = metadata[RECORD_KEY].replace('"schema":1', '"schema":2')
    elif case == "no record":
        metadata = {"format": "pt"}
    save_file(found, file, metadata=metadata)
    if case == "cut":
        file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("a weight", "not those that were written"),
        ("a name", "not those that were written"),
        ("the schema", "schema 2 is not 1"),
        ("no record", "is no start file"),
        ("cut", "truncated or damaged"),
    ],
)
def test_an_altered_file_is_refused(case: str, problem: str, pair: Pair, tmp_path: Path) -> None:
    base, dense = pair
    file = tmp_path / "f.safetensors"
    extract_start(base, dense, file, EVERYTHING)
    read_start(file)
    pinned = StartConfig(source=str(file), sha256=file_hash(file))
    altered(file, case)
    with pytest.raises(CheckpointError, match=problem) as caught:
        apply_start(base, tmp_path / "out", StartConfig(source=str(file)))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(CheckpointError, match="SHA-256 is"):
        apply_start(base, tmp_path / "out", pinned)
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_shape_is_refused(pair: Pair, tmp_path: Path) -> None:
    from mote.assemble.start_file import write_start

    base, dense = pair
    extract_start(base, dense, tmp_path / "f", EVERYTHING)
    start = read_start(tmp_path / "f")
    record = {key: value for key, value in start.record.items() if key not in ("schema", "tensors")}
    name = next(name for name in start.tensors if name.endswith("mlp.up_proj.weight.in"))
    for change in ({name: start.tensors[name][:, 1:].clone()}, {name: start.tensors[name][1:].clone()}):
        write_start(tmp_path / "f", record, {**start.tensors, **change})
        with pytest.raises(CheckpointError, match=r"up_proj\.weight' of shape .* does not fit F32\[52, 36\]"):
            apply_start(base, tmp_path / "out", StartConfig(source=str(tmp_path / "f")))
    write_start(tmp_path / "f", record, {**start.tensors, "no.such.tensor": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"holds no tensor 'no\.such\.tensor'"):
        apply_start(base, tmp_path / "out", StartConfig(source=str(tmp_path / "f")))
    write_start(tmp_path / "f", record, {**start.tensors, name: start.tensors[name] * float("nan")})
    with pytest.raises(CheckpointError, match="holds NaN or Inf"):
        apply_start(base, tmp_path / "out", StartConfig(source=str(tmp_path / "f")))


def test_extraction_wants_one_model_before_and_after(pair: Pair, tiny: Callable[..., Any], tmp_path: Path) -> None:
    base, dense = pair
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(CheckpointError, match=r"taken: exists already; .*--force"):
        extract_start(base, dense, tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
    other = saved(tiny("llama"), tmp_path / "other", "assemble")
    seeing = saved(tiny("aya_vision", seed=1), tmp_path / "seeing", "assemble")
    for wrong, problem in ((other, "is not as in"), (seeing, "another vision tower")):
        with pytest.raises(CheckpointError, match=problem):
            extract_start(base, wrong, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    for source, advice in (("package:nothing", "mote ships"), (str(tmp_path / "gone"), "mote extract")):
        with pytest.raises(MoteError, match=rf"no such file; .*{advice}"):
            StartConfig(source=source).file()


@pytest.mark.parametrize("name", ["small"])
def test_what_ships_is_whole_small_and_says_where_it_came_from(name: str) -> None:
    file = StartConfig(source=f"package:{name}").file()
    assert file.stat().st_size <= 8_000_000
    start = read_start(file)
    assert start.record["made_from"]["stages"] == ["assemble", "train align", "train instruct"]
    assert {part_of(changed) for changed in start.changed()} == {"connector", "language_model"}
