"""Which plans are worth a budget: those that nothing else which fits is better than.

Axes: bytes (of the kind that the budget is about), and four qualities of a plan that need no opinion: the number of
routed experts, and the bits of the shared expert, of attention and of the head; more of any is taken to be no worse.
A plan that fits is listed when no other that fits has at least as much of each and more of one, or the same in fewer
bytes. How much each is worth is a matter of measured accuracy, which this module does not have and does not invent; the
list is ordered by the mean bits of the weights that a token is multiplied with, then by the number of experts.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from mote.checkpoint.accounting import GIB
from mote.errors import FormatError, PlanError
from mote.plan.choice import CODECS, STORAGES, Choice, storage_bits
from mote.plan.measure import On, Plan, Use, count, measure
from mote.plan.skeleton import Skeleton

EXPERTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3}){2,}(?![\d,])")
"""Commas in a number of millions at least; a single one could as well mean a decimal point."""
HEADER = 1 << 16
"""Bytes by which sums of what parts add may be off: offsets in the headers of files have more or fewer digits."""
OTHERS = tuple(name for name in STORAGES if storage_bits(name) >= 4)
"""Storages of attention and head that are searched: below 4 bits nobody packs them."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched; a single value fixes it."""

    experts: Sequence[int] = EXPERTS
    codecs: Sequence[str] = CODECS
    shared: Sequence[str] = STORAGES
    attention: Sequence[str] = OTHERS
    head: Sequence[str] = OTHERS


@dataclass(frozen=True, kw_only=True)
class Found:
    """plans: worth the budget, by falling bits a token. fitting, searched: numbers of choices. smallest: of all."""

    plans: tuple[Plan, ...]
    fitting: int
    searched: int
    smallest: Plan


def budget_bytes(text: str, on: On) -> int:
    """ "3.4GiB", "800 MiB", "6.8GB" as bytes. Raises PlanError.

    GB and MB are powers of 1000, except for the paper's accounting, whose GB are GiB. There a budget is a printed
    figure, and half of its last digit behind the point is added: what prints as 3.4 fits 3.4. A whole number is exact.
    """
    squeezed = text.strip().replace(" ", "")
    if _THOUSANDS.match(squeezed):
        squeezed = squeezed.replace(",", "")
    number = squeezed.rstrip("aAbBgGiIkKmMtT")
    unit = squeezed[len(number) :].lower()
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    powers = {"k": 1, "m": 2, "g": 3, "t": 4}
    if not 0 < value < 1e9 or (unit.rstrip("b").rstrip("i") or "g") not in powers or unit in ("b", "i", "ib"):
        raise PlanError(f"budget {text!r} is no size; write 3.4GiB, 800MiB or 6.8GB")
    power = powers[unit.rstrip("b").rstrip("i") or "g"]
    base = 1000 if unit.endswith("b") and "i" not in unit and on != "paper" else 1024
    if on == "paper":
        decimals = len(number.partition(".")[2])
        value += 0.5 * 10.0**-decimals if decimals else 0.0
    return int(value * base**power)


def search(skeleton: Skeleton, budget: int, on: On, fixed: Choice, space: Space, use: Use, *, said: str = "") -> Found:
    """The plans for `budget` bytes of the kind `on`, `said` by a user; `fixed` gives what is not searched.

    Raises PlanError, with the smallest plan there is, when nothing fits.
    """
    if on in ("paper", "ffn"):  # which attention and head do not enter: they stay as asked for
        space = replace(space, attention=(fixed.attention,), head=(fixed.head,))
    rows = list(table(skeleton, on, fixed, space, use))
    if not rows:
        raise PlanError(f"budget: no format of those that are searched holds {skeleton.name}")
    _, least = min(rows, key=lambda row: row[0])
    smallest = measure(skeleton, least, use)
    fitting = [row for row in rows if row[0] <= budget - HEADER or _fits(skeleton, row, budget, on, use)]
    if not fitting:
        raise PlanError(
            f"budget: nothing fits {said or shown(budget)} ({on}); the smallest plan of {skeleton.name} takes "
            f"{shown(smallest.bytes(on))}: {least.title()}" + _advice(on)
        )
    plans = [measure(skeleton, choice, use) for choice in _best(fitting)]
    plans.sort(key=lambda plan: (-plan.token_bits, -plan.choice.experts))
    return Found(plans=tuple(plans), fitting=len(fitting), searched=len(rows), smallest=smallest)


def shown(size: int) -> str:
    """ "3.400 GiB", or "12.345 MiB" of what is small."""
    return f"{size / GIB:.3f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.3f} MiB"


def _fits(skeleton: Skeleton, row: tuple[int, Choice], budget: int, on: On, use: Use) -> bool:
    """Whether a choice fits whose size in `table` is within a header's digits of the budget."""
    return row[0] <= budget + HEADER and count(skeleton, row[1], on, use) <= budget


def _advice(on: On) -> str:
    return "" if on in ("paper", "ffn") else "; a smaller model, context or vision tower takes less"


def table(skeleton: Skeleton, on: On, fixed: Choice, space: Space, use: Use) -> Iterator[tuple[int, Choice]]:
    """(bytes, choice) of the whole space.

    What a storage of the shared experts, of attention or of the head adds is the same beside everything else, up to the
    digits of a header, so that each is measured once. A storage that cannot hold the model's sizes is left out.
    """
    first = replace(fixed, shared=space.shared[0], attention=space.attention[0], head=space.head[0])
    counted: dict[Choice, int | None] = {}

    def size_of(choice: Choice) -> int | None:
        if choice not in counted:
            counted[choice] = _try(skeleton, choice, on, use)
        return counted[choice]

    added: list[dict[str, int]] = []
    start = size_of(first) or 0
    for part, names in (("shared", space.shared), ("attention", space.attention), ("head", space.head)):
        sizes = {name: size_of(replace(first, **{part: name})) for name in names}  # type: ignore[arg-type]
        added.append({name: size - start for name, size in sizes.items() if size is not None})
    for experts, codec in product(space.experts, space.codecs):
        choice = replace(first, experts=experts, codec=codec)  # type: ignore[arg-type]
        size = size_of(choice)
        if size is None:
            continue
        for (shared, a), (attention, b), (head, c) in product(*(part.items() for part in added)):
            yield size + a + b + c, replace(choice, shared=shared, attention=attention, head=head)


def _try(skeleton: Skeleton, choice: Choice, on: On, use: Use) -> int | None:
    try:
        return count(skeleton, choice, on, use)
    except FormatError:
        return None


def qualities(choice: Choice) -> tuple[float, ...]:
    """What a plan has of the four qualities."""
    storages = (choice.shared, choice.attention, choice.head)
    return (float(choice.experts), *(float(storage_bits(name)) for name in storages))


def _best(fitting: Iterable[tuple[int, Choice]]) -> list[Choice]:
    """The choices that no other of `fitting` beats."""
    cheapest: dict[tuple[float, ...], tuple[int, Choice]] = {}
    for size, choice in fitting:
        key = qualities(choice)
        if key not in cheapest or size < cheapest[key][0]:
            cheapest[key] = size, choice
    return [
        choice
        for key, (_, choice) in cheapest.items()
        if not any(other != key and all(a >= b for a, b in zip(other, key, strict=True)) for other in cheapest)
    ]
