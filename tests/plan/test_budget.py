"""Plans that are worth a budget, by exhaustive comparison, and budgets that nothing fits."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from mote.errors import PlanError
from mote.plan.budget import Space, budget_bytes, qualities, search
from mote.plan.choice import Choice
from mote.plan.measure import Use, count
from mote.plan.skeleton import Skeleton, open_skeleton

SPACE = Space(experts=(1, 2, 4, 8), shared=("none", "int8", "int4"), attention=("none", "int4"), head=("none", "int8"))
USE = Use(context=512)


def every(space: Space) -> list[Choice]:
    axes = (space.experts, space.codecs, space.shared, space.attention, space.head)
    names = ("experts", "codec", "shared", "attention", "head")
    return [replace(Choice(), **dict(zip(names, values, strict=True))) for values in product(*axes)]


@pytest.mark.parametrize("on", ["file", "resident"])
def test_nothing_that_fits_is_better_and_nothing_worth_it_is_left_out(skeleton: Skeleton, on: Any) -> None:
    sizes = {choice: count(skeleton, choice, on, USE) for choice in every(SPACE)}
    budget = sorted(sizes.values())[len(sizes) // 2]
    found = search(skeleton, budget, on, Choice(), SPACE, USE)
    listed = {qualities(plan.choice) for plan in found.plans}
    fitting = {qualities(choice) for choice, size in sizes.items() if size <= budget}
    best = {one for one in fitting if not any(o != one and all(map(float.__ge__, o, one)) for o in fitting)}
    assert listed == best
    for plan in found.plans:
        same = [size for choice, size in sizes.items() if qualities(choice) == qualities(plan.choice)]
        assert plan.bytes(on) == min(same) <= budget
    bits = [plan.token_bits for plan in found.plans]
    assert bits == sorted(bits, reverse=True)


def test_an_impossible_budget_names_the_smallest_plan(skeleton: Skeleton) -> None:
    smallest = min(count(skeleton, choice, "file", USE) for choice in every(SPACE))
    with pytest.raises(PlanError, match=f"smallest plan of small takes {smallest / 2**20:.3f} MiB: 1 x 1.6 bit"):
        search(skeleton, smallest - 1000, "file", Choice(), SPACE, USE)
    assert search(skeleton, smallest, "file", Choice(), SPACE, USE).fitting == 1


def test_the_papers_budget_counts_what_prints_as_it() -> None:
    # INT4 and 4 x 2 bits are 3.4014 GiB, which the paper prints as 3.4.
    skeleton = open_skeleton("qwen2.5-3b")
    choice = Choice(codec="2bit", shared="int4")
    assert 3.4 * 2**30 < count(skeleton, choice, "paper", Use()) <= budget_bytes("3.4GiB", "paper")
    space = Space(experts=(4,), codecs=("2bit",))
    found = search(skeleton, budget_bytes("3.4GiB", "paper"), "paper", Choice(), space, Use())
    assert [plan.choice for plan in found.plans] == [choice]


def test_attention_and_head_stay_where_the_budget_does_not_count_them(skeleton: Skeleton) -> None:
    found = search(skeleton, 1 << 40, "ffn", Choice(head="int8"), Space(), USE)
    assert {(plan.choice.attention, plan.choice.head) for plan in found.plans} == {("none", "int8")}


@pytest.mark.parametrize(
    ("text", "on", "count_of"),
    [
        ("3GiB", "file", 3 << 30),
        ("1.5 gib", "file", 3 << 29),
        ("2", "resident", 2 << 30),
        ("800MiB", "ffn", 800 << 20),
        ("6.8GB", "file", 6_800_000_000),
        ("3.40GB", "paper", int(3.405 * 2**30)),
        ("1,000,000KiB", "file", 1_000_000 << 10),
    ],
)
def test_sizes(text: str, on: Any, count_of: int) -> None:
    assert budget_bytes(text, on) == count_of


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lots",
        "-1GiB",
        "0",
        "nan",
        "3.4GiBs",
        "3 B",
        "1e99GiB",
        "3,4GiB",
        "0,500GiB",
        "1234,567GiB",
        "3.4,000GiB",
        "1,000GiB",
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(PlanError, match=r"write 3\.4GiB"):
        budget_bytes(text, "file")
