"""What stands beside a plan: peers, devices, measured accuracies."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mote.checkpoint.accounting import GIB
from mote.errors import PlanError
from mote.plan import known
from mote.plan.budget import Space
from mote.plan.choice import Choice
from mote.plan.devices import device
from mote.plan.measure import Use, measure
from mote.plan.peers import peers
from mote.plan.skeleton import Skeleton, open_skeleton
from mote.plan.studies import measured, read_studies
from mote.plan.survey import survey

STUDIES = Path(__file__).parents[2] / "studies"


def test_peers_at_the_papers_budget() -> None:
    skeleton = open_skeleton("qwen2.5-3b")
    found = {peer.title: peer.plan for peer in peers(skeleton, round(3.45 * GIB), "paper", Choice(), Use())}
    assert {title: round(plan.paper_gib, 2) for title, plan in found.items()} == {
        "the paper's MoTE, 4 x 2 bit + INT4": 3.40,
        "MoE-LLaVA, 4 experts INT3": 3.40,
        "3 experts INT4": 3.40,
        "3 experts INT8": 6.80,
        "2 experts BF16": 9.07,
        "dense BF16": 4.54,
        "dense INT4": 1.13,
        "qwen2.5-7b dense INT4": 2.66,
    }


def test_a_baseline_with_dense_layers_has_them_in_its_format_too() -> None:
    skeleton = open_skeleton("qwen2.5-3b")
    found = {p.title: p.plan for p in peers(skeleton, None, "paper", Choice(layers=tuple(range(0, 36, 2))), Use())}
    # 3 bits of 16, in 18 layers with four networks and 18 with one
    assert found["MoE-LLaVA, 4 experts INT3"].paper_gib == pytest.approx(found["dense BF16"].paper_gib * 3 / 16 * 2.5)
    assert found["2 experts BF16"].paper_gib == pytest.approx(found["dense BF16"].paper_gib * 1.5)
    assert found["3 experts INT4"].choice.title() == "3 x INT4 + dense layers INT4, in 18 layers"


def test_peers_choose_attention_and_head_where_the_budget_counts_them() -> None:
    skeleton = open_skeleton("qwen2.5-0.5b")
    tight, ample = (
        {peer.title: peer.plan for peer in peers(skeleton, round(gib * GIB), "file", Choice(), Use())}
        for gib in (1.5, 1.7)
    )
    title = "MoE-LLaVA, 4 experts INT3"
    assert tight[title].file_bytes <= 1.5 * GIB < ample[title].file_bytes <= 1.7 * GIB
    assert (ample[title].choice.attention, ample[title].choice.head) == ("none", "none")


def test_what_was_asked_for_is_not_chosen_for_peers_either() -> None:
    skeleton = open_skeleton("qwen2.5-3b")
    asked, space = Choice(attention="int4", head="int8"), Space(attention=("int4",), head=("int8",))
    found = peers(skeleton, round(4.5 * GIB), "file", asked, Use(), space)
    assert {(peer.plan.choice.attention, peer.plan.choice.head) for peer in found} == {("int4", "int8")}


def test_a_larger_model_has_the_same_eyes() -> None:
    for vision in ("clip-l-336", "dinov2-s-112"):
        skeleton = open_skeleton("qwen2.5-0.5b", vision=vision)
        peer = peers(skeleton, None, "file", Choice(), Use(images=2))[-1]
        other = open_skeleton("qwen2.5-1.5b", vision=vision)
        assert peer.plan.components == measure(other, peer.plan.choice).components
        own = measure(skeleton, Choice()).components
        assert peer.plan.components["vision_tower"] == own["vision_tower"]


def test_a_larger_model_is_of_the_same_family() -> None:
    titles = [peer.title for peer in peers(open_skeleton("smollm2-135m"), None, "file", Choice(), Use())]
    assert titles[-1] == "smollm2-360m dense INT4"
    assert "dense INT4" in peers(open_skeleton("qwen2.5-32b"), None, "file", Choice(), Use())[-1].title


@pytest.mark.parametrize("name", known.table("devices"))
def test_profiles(name: str) -> None:
    there = device(name)
    assert 0 < there.free < there.memory
    assert name.endswith(f"{there.memory / GIB:.0f}gb")
    plan = measure(open_skeleton("qwen2.5-0.5b"), Choice(shared="int4", attention="int8", head="int4"))
    assert there.fits(plan) == "yes"
    assert there.bound(plan) == there.bandwidth / plan.token_bytes


def test_a_device_says_what_happens_to_what_does_not_fit() -> None:
    pi = device("raspberry-pi-5-4gb")
    skeleton = open_skeleton("qwen2.5-3b")
    assert pi.fits(measure(skeleton, Choice(), Use(bf16=pi.bf16))) == "mapped"
    assert pi.fits(measure(skeleton, Choice(), Use(bf16=False, context=32768, kv="f32"))) == "no"


def test_this_machine_is_measured() -> None:
    here = device("this")
    assert 0 < here.free <= here.memory
    assert here.bandwidth > 1e8
    with pytest.raises(PlanError, match="did you mean raspberry-pi-5"):
        device("raspberry-pi-5")


def test_accuracies_stand_beside_the_plan_that_was_measured_only() -> None:
    reports = read_studies(STUDIES)
    skeleton = open_skeleton("smollm2-135m")
    report = json.loads((STUDIES / "small" / "report.json").read_text(encoding="utf-8"))
    found = {one.source: one for one in measured(skeleton, measure(skeleton, Choice()), reports)}
    assert found["small/report.json"].value == report["accuracy"]["packed"]["average"]["value"]
    dense = measure(skeleton, Choice(kind="dense", experts=0))
    assert measured(skeleton, dense, reports)[0].value == report["accuracy"]["dense"]["average"]["value"]
    for other in (Choice(experts=3), Choice(shared="int4"), Choice(codec="2bit"), Choice(head="int8")):
        assert not measured(skeleton, measure(skeleton, other), reports)
    assert not measured(skeleton, measure(skeleton, Choice(layers=(0, 2, 4))), reports)
    for vision in ("none", "siglip-base-224"):
        other = open_skeleton("smollm2-135m", vision=vision)
        assert not measured(other, measure(other, Choice()), reports)
        assert not measured(other, measure(other, Choice(kind="dense", experts=0)), reports)
    bigger = open_skeleton("qwen2.5-0.5b")
    assert not measured(bigger, measure(bigger, Choice()), reports)


@pytest.mark.parametrize(
    ("family", "width", "asked"),
    [
        ("mote", "int4", Choice(shared="int4", symmetric=False)),
        ("moe4", "int3", Choice(kind="moe-llava", experts_format="int3", symmetric=False, codec="2bit")),
        ("moe2", "none", Choice(kind="moe-llava", experts=2, experts_format="none", group=32)),
        ("dense", "int4", Choice(kind="dense", experts=0, shared="int4", symmetric=False)),
    ],
)
def test_scores_of_the_budgets_stand_beside_their_plans(family: str, width: str, asked: Choice) -> None:
    rows = json.loads((STUDIES / "small-budget" / "report.json").read_text(encoding="utf-8"))["rows"]
    expected = [
        ("" if row["method"] == "none" else row["method"], row["average"]["value"])
        for row in rows
        if (row["family"], row["width"]) == (family, width)
    ]
    assert expected
    skeleton = open_skeleton("smollm2-135m")
    reports = [study for study in read_studies(STUDIES) if study.accuracies[0][1].source.startswith("small-budget/")]
    assert [(one.method, one.value) for one in measured(skeleton, measure(skeleton, asked), reports)] == expected
    others = [replace(asked, attention="int8"), *([replace(asked, group=128)] if asked.has_integers else [])]
    for other in others:
        assert not measured(skeleton, measure(skeleton, other), reports)
    eyeless = open_skeleton("smollm2-135m", vision="none")
    assert not measured(eyeless, measure(eyeless, asked), reports)


def test_a_file_that_is_no_report_is_passed_over(tmp_path: Path) -> None:
    report = json.loads((STUDIES / "small" / "report.json").read_text(encoding="utf-8"))
    without_low = copy.deepcopy(report)
    del without_low["accuracy"]["packed"]["average"]["low"]
    no_experts = copy.deepcopy(report)
    no_experts["provenance"]["mixture"]["num_experts"] = 0
    for index, plain in enumerate(({}, [], without_low, no_experts, {"provenance": {"mixture": 3}})):
        (tmp_path / f"odd{index}").mkdir()
        (tmp_path / f"odd{index}" / "report.json").write_text(json.dumps(plain), encoding="utf-8")
    assert read_studies(tmp_path) == []


def test_a_budget_of_the_device_is_its_free_memory(skeleton: Skeleton) -> None:
    found = survey(skeleton, Choice(), Use(), budget="device", devices=["raspberry-pi-5-8gb", "laptop-8gb"])
    assert (found.on, found.budget) == ("resident", device("raspberry-pi-5-8gb").free)
    plain = found.to_dict()
    assert [row["fits"] for row in plain["devices"]] == ["yes", "yes"]
    assert plain["budget"]["plans"][0]["device"]["name"] == "raspberry-pi-5-8gb"
    with pytest.raises(PlanError, match="on='disk' is unknown"):
        survey(skeleton, Choice(), Use(), on="disk")
    with pytest.raises(PlanError, match="searches MoTE"):
        survey(skeleton, Choice(kind="dense", experts=0), Use(), budget="3GiB")
