"""Which weight formats exist."""

import pytest

from mote.errors import FormatError
from mote.ternary.format import QUANTIZERS, WeightFormat


def test_largest_levels() -> None:
    levels = [WeightFormat(quantizer=name).max_level for name in QUANTIZERS]
    assert dict(zip(QUANTIZERS, levels, strict=True)) == {
        "none": 0,
        "ternary": 1,
        "binary": 1,
        "int2": 1,
        "int3": 3,
        "int4": 7,
        "int6": 31,
        "int8": 127,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"quantizer": "int5"},
        {"scale": "median"},
        {"granularity": "column"},
        {"activation": "int4"},
        {"activation": "int8_group"},
        {"activation": "int8_group", "granularity": "row"},
        {"granularity": "group"},
        {"group": 64},
        {"granularity": "group", "group": -16},
    ],
)
def test_unknown_or_contradictory_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        WeightFormat(**settings)  # type: ignore[arg-type]
