"""Products write their rows and nothing beside them, however the rows lie in the caller's memory."""

import pytest
import torch

from mote.kernels import linear
from mote.ternary.format import WeightFormat
from mote.ternary.integers import pack_integers
from mote.ternary.round_to_nearest import round_to_nearest


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("rows", [40, 64])
@pytest.mark.parametrize("tokens", [1, 7])
def test_a_view_of_rows_64_apart_keeps_what_lies_between(bits: int, rows: int, tokens: int) -> None:
    fmt = WeightFormat(
        quantizer=f"int{bits}",  # type: ignore[arg-type]
        scale="absmax",
        granularity="group",
        group=32,
        activation="int8_group",
    )
    generator = torch.Generator().manual_seed(0)
    packed = pack_integers(round_to_nearest(torch.randn(rows, 96, generator=generator), fmt), fmt)
    x = torch.randn(tokens, 96, generator=generator)
    arguments = (packed.packed, packed.scale, f"int{bits}", rows, 96, 32, "group", x)
    memory = torch.full((tokens + 1, 64), 7.0)
    linear(*arguments, out=memory[:tokens, :rows])
    assert torch.equal(memory[:tokens, :rows], linear(*arguments))
    assert bool((memory[:tokens, rows:] == 7).all())
    assert bool((memory[tokens] == 7).all())
