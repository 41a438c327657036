"""The benchmarks' page says what the reports say: medians, ratios, who lost, which goal was reached."""

import json
from typing import Any

import pytest

from benchmarks import budget, budget_page
from benchmarks.engine import Plan, sides, title
from benchmarks.goals import GOALS, matching, verdicts
from benchmarks.page import PAGES, demo_part, engine_part, kernels_part, page
from benchmarks.report import alternate, compare, rates, summary


def row(peer: str, ratio: float, **fields: Any) -> dict[str, Any]:
    ours = {"median": 10.0 * ratio, "min": 9.0, "max": 41.0, "n": 3}
    theirs = {"median": 10.0, "min": 8.0, "max": 12.0, "n": 3}
    plain = {"what": "gemv", "format": "2bit", "model_shape": "1.5b", "tokens": 1, "threads": 1, "isa": "avx2"}
    plain |= {"run": "1.5b, 1 thread: 4 experts"}
    plain |= {"shape": {"H": 1536, "F": 8960, "L": 1, "E": 1}, "precision": "2.0 b x int8", "unit": "Gweights/s"}
    return {**plain, "peer_name": peer, "ours": ours, "peer": theirs, "ratio": ratio, **fields}


def report(*rows: dict[str, Any]) -> dict[str, Any]:
    machine = {"cpu": {"model": "a CPU", "features": ["avx2"]}, "cores": 2, "memory_bytes": 1 << 34, "platform": "x"}
    return {"machine": machine, "versions": {"mote": "1"}, "git": "abc", "settings": {"rounds": 3}, "rows": list(rows)}


def test_a_ratio_above_one_is_ours_for_speeds_and_for_times() -> None:
    fast, slow = summary([4.0, 2.0, 3.0]), summary([1.5])
    assert compare(fast, slow)["ratio"] == 2.0
    assert compare(slow, fast, smaller_is_better=True)["ratio"] == 2.0
    assert fast == {"median": 3.0, "min": 2.0, "max": 4.0, "n": 3}


def test_sides_take_turns_and_give_one_number_a_round() -> None:
    calls: list[str] = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, shortest=0.0)
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert "".join(calls[-6:]) == "abbaab"
    assert rates(2e9, [1.0, 2.0])["max"] == 2.0


def test_the_page_names_what_was_lost_and_by_how_much() -> None:
    page = kernels_part(report(row("TQ2_0", 0.5, peer_precision="TQ2_0 x int8"), row("TQ1_0", 4.0)))
    assert "| 2bit | TQ2_0 | **0.50** |" in page
    assert "| TQ2_0 | TQ2_0 x int8 | 10 (8-12) |" in page
    assert "Rows where we lose: 1 of 2." in page
    assert "avx2" in page
    assert "abc" in page


def test_limits_are_shares_and_not_losses() -> None:
    resident = {"what": "resident", "unit": "bytes", "format": "mote 4 base3"}
    page = engine_part(report(row("read bandwidth", 0.5), row("weights + cache", 0.9, **resident)))
    assert "50%" in page
    assert "none of 0" in page


@pytest.mark.parametrize(
    ("ratios", "verdict"), [((1.9, 2.5), "yes"), ((1.7, 2.5), "in part"), ((0.5, 1.7), "no"), ((), "not measured")]
)
def test_a_goal_is_reached_when_all_its_rows_reach_it(ratios: tuple[float, ...], verdict: str) -> None:
    rows = [row("TQ2_0", ratio) for ratio in ratios] + [row("TQ2_0", 9.0, threads=2), row("TQ2_0", 9.0, format="int4")]
    found = {text: said for text, _, _, said in verdicts({"kernels": report(*rows)})}
    assert found["expert GEMV from RAM against TQ2_0, 2bit"] == verdict


def test_decode_is_weighed_by_the_bytes_of_a_token() -> None:
    goal = next(goal for goal in GOALS if goal.value == "of_bytes")
    fields = {"what": "decode", "format": "mote 4 base3", "token_bytes": 1, "peer_token_bytes": 3}
    assert matching(goal, [row("mote dense bf16", 2.7, **fields)]) == [pytest.approx(0.9)]


def test_what_is_not_in_the_kernels_is_told() -> None:
    parts = {"attention": 0.5, "python": 0.4, "native_rest": 0.1}
    demo = report({**row("", 1.0, what="decode"), "parts": parts})
    goal = next(goal for goal in GOALS if goal.value == "outside_kernels")
    assert matching(goal, demo["rows"]) == [pytest.approx(0.5)]
    assert "| python | 400.000 | 40% |" in demo_part(demo)


def test_a_run_says_when_and_from_what_it_was_made_and_keeps_its_own_numbers() -> None:
    fields = {"what": "decode", "format": "mote 4 base3", "unit": "tokens/s"}
    rows = [
        row("llama.cpp 4 TQ2_0", 1.5, **fields),
        row("mote 64 base3", 1.0, run="1.5b, 1 thread: 64 experts", **fields),
    ]
    made = [
        {"name": each["run"], "git": git, "date": "2026-11-30", "load_average": 0.9, "rounds": 2, "decode": 24}
        for each, git in zip(rows, ("abc", "def"), strict=True)
    ]
    page = engine_part({**report(*rows), "runs": made})
    first, second = page.split("### ")[1:3]
    assert "mote at abc" in first
    assert "| mote 4 base3 | 2.0 b x int8 | 15 (9-41) |" in first
    assert "mote at def" in second
    assert "| mote 4 base3 | 2.0 b x int8 | 10 (9-41) |" in second


def test_the_first_codec_and_type_go_with_every_number_of_experts() -> None:
    found = [side.name for side in sides("1.5b", [16, 4], ["base3", "2bit"], ["TQ2_0", "Q4_0"])]
    assert found == [
        *("mote dense int4", "mote dense bf16", "llama.cpp dense Q4_0"),
        *("mote 4 base3", "mote 4 2bit", "llama.cpp 4 TQ2_0", "llama.cpp 4 Q4_0"),
        *("mote 16 base3", "llama.cpp 16 TQ2_0"),
    ]
    plan = Plan(shape="1.5b", threads=2, prompts=(64,), decode=24, rounds=2)
    assert title(plan, sides("1.5b", [4, 16], ["base3"], [])) == "1.5b, 2 threads: dense, 4 and 16 experts"


def test_the_pages_are_what_the_reports_give() -> None:
    """python -m benchmarks.page, python -m benchmarks.budget --draw"""
    for machine in PAGES:
        assert machine.out.read_text(encoding="utf-8") == page(machine)
    budgets = budget_page.PAGE.read_text(encoding="utf-8")
    assert budgets == budget_page.filled(budgets, json.loads(budget.REPORT.read_text(encoding="utf-8")))
