"""The paper's table, and plans that are the files that up-cycling and packing write."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

import mote
from mote.checkpoint.shards import Checkpoint
from mote.compress.config import PackConfig, Storage
from mote.errors import FormatError, PlanError
from mote.plan.choice import STORAGES, Choice
from mote.plan.measure import Use, count, measure
from mote.plan.skeleton import Skeleton, of_config, open_skeleton
from mote.ternary.format import FULL_PRECISION
from mote.upcycle import preset

ROOT = Path(__file__).parents[2]
DENSE = Choice(kind="dense", experts=0)
ROWS = {
    "dense, BF16": DENSE,
    "MoE-LLaVA, 4 BF16 experts": Choice(kind="moe-llava", experts_format="none"),
    "MoTE, BF16 shared + 4 x 2.0 bits": Choice(codec="2bit"),
    "MoTE, BF16 shared + 4 x 1.6 bits": Choice(),
    "MoTE, INT4 shared + 4 x 2.0 bits": Choice(codec="2bit", shared="int4"),
    "MoTE, INT4 shared + 4 x 1.6 bits": Choice(shared="int4"),
    "MoE-LLaVA quantised to INT3": Choice(kind="moe-llava", experts_format="int3"),
}


def table() -> dict[str, list[float]]:
    """The paper's table as docs/explanation/memory.md has it: row -> GiB of the three models."""
    text = (ROOT / "docs" / "explanation" / "memory.md").read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split("|") for line in text.splitlines() if re.match(r"^\|[^|]*\|( *\d+\.\d+ *\|){3}$", line)
    ]
    return {cells[0].strip(): [float(cell) for cell in cells[1:]] for cells in rows}


@pytest.mark.parametrize("row", ROWS)
def test_the_papers_table(row: str) -> None:
    models = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b")
    found = [measure(open_skeleton(name), ROWS[row]).paper_gib for name in models]
    assert [round(value, 2) for value in found] == table()[row]


def test_true_bytes_are_never_fewer_than_the_papers() -> None:
    skeleton = open_skeleton("qwen2.5-3b")
    for choice in ROWS.values():
        plan = measure(skeleton, choice)
        assert plan.ffn_bytes >= plan.paper_gib * 2**30 - 1
        assert plan.file_bytes > sum(plan.components.values()) > plan.ffn_bytes
    # INT4 with a bf16 scale per 64 inputs is 4.25 bits: 2.95 becomes 3.03, docs/explanation/memory.md.
    assert round(measure(skeleton, Choice(shared="int4")).ffn_bytes / 2**30, 2) == 3.03


PACKS: tuple[dict[str, Any], ...] = (
    {"codec": "base3"},
    {"codec": "2bit", "shared": "int4", "group": 32},
    {"codec": "base3", "shared": "int8", "attention": "int4", "head": "int8", "group": 128},
    {"codec": "base3", "shared": "int3", "attention": "int6", "symmetric": False},
    {"codec": "base3", "tower": "int8"},
)


@pytest.mark.parametrize("family", ["llava", "aya_vision", "qwen2"])
@pytest.mark.parametrize("options", PACKS, ids=lambda options: "-".join(map(str, options.values())))
def test_a_plan_is_the_packed_checkpoint(
    family: str, options: dict[str, Any], dense: Callable[..., Path], tmp_path: Path
) -> None:
    if family == "qwen2" and "tower" in options:
        pytest.skip("has no tower")
    source = dense(family, hidden_size=96, intermediate_size=200)
    upcycled, packed = tmp_path / "upcycled", tmp_path / "packed"
    mote.upcycle(source, upcycled, num_experts=3)
    mote.pack(upcycled, packed, **options)
    choice = Choice(experts=3, **options)
    for model in (source, source / "config.json", packed):
        plan = measure(open_skeleton(str(model)), choice)
        held = Checkpoint.open(packed)
        components = mote.checkpoint.accounting.true_bytes(held)
        assert dict(plan.components) == components
        real = sum((packed / shard).stat().st_size for shard in held.shards)
        assert plan.file_bytes == pytest.approx(real, rel=0.002)


def test_a_plan_is_the_dense_packed_and_the_baselines_checkpoint(dense: Callable[..., Path], tmp_path: Path) -> None:
    source = dense("llama", hidden_size=96, intermediate_size=200)
    packed, baseline, int3 = tmp_path / "packed", tmp_path / "baseline", tmp_path / "int3"
    mote.pack(source, packed, shared="int4", head="int8")
    plain = {"top_k": 2, "normalize_gates": True, "shared_expert": False, "routed": FULL_PRECISION}
    mote.upcycle(source, baseline, num_experts=2, **plain)
    mote.pack(baseline, int3, experts="int3", head="int8")
    skeleton = open_skeleton(str(source))
    for path, choice in (
        (int3, Choice(kind="moe-llava", experts=2, experts_format="int3", head="int8")),
        (packed, replace(DENSE, shared="int4", head="int8")),
        (baseline, Choice(kind="moe-llava", experts=2, experts_format="none")),
        (source, DENSE),
    ):
        real = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        assert measure(skeleton, choice).file_bytes == pytest.approx(real, rel=0.002)


@pytest.mark.parametrize("name", ["packed", "dense"])
def test_a_plan_is_the_demos_checkpoint(name: str) -> None:
    root = ROOT / "runs" / "small" / name
    if not (root / "model.safetensors").is_file():
        pytest.skip("make demo has not run here")
    choice = Choice() if name == "packed" else DENSE
    real = sum(file.stat().st_size for file in root.glob("*.safetensors"))
    assert measure(open_skeleton("smollm2-135m"), choice).file_bytes == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("storage", get_args(Storage))
def test_a_choices_contract_is_packings(storage: Any) -> None:
    for shared, attention, head, symmetric in ((storage, "none", "none", True), ("none", storage, storage, False)):
        options: dict[str, Any] = {"codec": "2bit", "shared": shared, "attention": attention, "head": head}
        options |= {"group": 32, "symmetric": symmetric}
        config = PackConfig(**options)
        upcycled = preset("mote", num_experts=5).contract((0, 1), 0, 0)
        assert Choice(experts=5, **options).contract(2) == config.contract(upcycled, "it")
        baseline = preset("moe-llava").contract((0, 1), 0, 0)
        peer = Choice(kind="moe-llava", experts_format=storage, **{**options, "shared": "none"})
        if config.quantizes or storage != "none":
            with_experts = replace(config, experts=storage, shared="none").contract(baseline, "it")
            assert peer.contract(2) == with_experts
        if config.quantizes:
            assert replace(DENSE, **options).contract(2) == config.contract(None, "it")


def test_every_storage_counts_with_its_bits(skeleton: Skeleton) -> None:
    sizes = {name: measure(skeleton, Choice(shared=name)).components["shared_experts"] for name in STORAGES}
    weights = sizes["none"] // 2
    for name in STORAGES[1:]:
        bits = 8 * sizes[name] / weights
        # Padding: 320 rows are 5 strips of 64, 128 inputs two groups of 64.
        assert bits == pytest.approx(int(name.removeprefix("int")), rel=0.01)


def test_layers_without_a_mixture_keep_their_networks(skeleton: Skeleton) -> None:
    plan = measure(skeleton, Choice(layers=(1,), shared="int4"))
    assert plan.components["dense_ffn"] == plan.components["shared_experts"] > 0
    every = measure(skeleton, Choice(shared="int4"))
    assert plan.paper_gib == pytest.approx(every.paper_gib - 4 * 1.6 * 3 * 128 * 320 / 8 / 2**30)


@pytest.mark.parametrize("on", ["paper", "ffn", "file", "resident"])
def test_counting_one_kind_is_the_plans(skeleton: Skeleton, on: Any) -> None:
    choice = Choice(shared="int6", attention="int3")
    assert count(skeleton, choice, on, Use()) == measure(skeleton, choice, Use()).bytes(on)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shared": "int5"}, "shared='int5' is unknown; use one of none, int2"),
        ({"group": 48}, "group=48 is unknown; use one of 32, 64, 128"),
        ({"experts": 0}, "0 experts in a model of kind mote"),
        ({"experts": 10**6}, "use 1 to 4096"),
        ({"kind": "moe-llava", "shared": "int4"}, "MoE-LLaVA has no shared experts"),
        ({"layers": (7,)}, "layer 7 of a model with 2"),
    ],
)
def test_bad_choices(skeleton: Skeleton, options: dict[str, Any], said: str) -> None:
    with pytest.raises((FormatError, PlanError), match=said):
        measure(skeleton, Choice(**options))


def test_a_context_has_room_for_its_pictures() -> None:
    skeleton = open_skeleton("qwen2.5-0.5b")
    assert skeleton.image_tokens == 729
    with pytest.raises(PlanError, match="3 pictures take 2187 tokens, more than --context 2048"):
        measure(skeleton, Choice(), Use(images=3))
    with pytest.raises(PlanError, match="has 32768 positions"):
        measure(skeleton, Choice(), Use(context=40000))
    without = measure(skeleton, Choice(), Use(images=0))
    assert without.resident.pictures == 0
    assert (
        measure(skeleton, Choice(), Use(bf16=False)).resident.pictures > measure(skeleton, Choice()).resident.pictures
    )


def test_memory_grows_with_the_context_by_its_keys_and_values(skeleton: Skeleton) -> None:
    short, long = (measure(skeleton, Choice(), Use(context=n)).resident for n in (1024, 2048))
    # 2 layers, keys and values, 2 heads of 32, bf16
    assert long.total - short.total == long.cache - short.cache == 1024 * 2 * 2 * 64 * 2


def test_a_model_that_is_not_swiglu_is_refused() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with pytest.raises(PlanError, match="no decoder layers"):
        of_config({"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1, **sizes}, "g", "a test")
