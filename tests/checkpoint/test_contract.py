"""quantization_config: its JSON form is exact both ways, and nonsense is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mote.checkpoint.contract import MoteConfig
from mote.errors import CheckpointError, FormatError, MoteError
from mote.ternary.format import FULL_PRECISION, QUANTIZERS, WeightFormat

formats = st.builds(
    WeightFormat,
    quantizer=st.sampled_from(QUANTIZERS),
    scale=st.sampled_from(["absmean", "lloyd_max", "absmax"]),
    granularity=st.sampled_from(["tensor", "row"]),
) | st.just(WeightFormat(granularity="group", group=64))


@given(
    layers=st.lists(st.integers(0, 90), unique=True).map(sorted),
    routed=formats,
    shared=formats | st.just(FULL_PRECISION),
    codec=st.sampled_from([None, "2bit", "base3"]),
    combine=st.sampled_from(["add", "convex", "gated"]),
)
def test_json_round_trip(layers: list[int], codec: Any, **fields: Any) -> None:
    state: Any = "upcycled" if codec is None else "packed"
    config = MoteConfig(layers=tuple(layers), codec=codec, state=state, **fields)
    plain = json.loads(json.dumps(config.to_dict()))
    assert plain["quant_method"] == "mote"
    assert MoteConfig.from_dict(plain) == config


@pytest.mark.parametrize(
    "nonsense",
    [
        {"num_experts": 0},
        {"num_experts": 2.5},
        {"num_experts": True},
        {"top_k": 5},
        {"top_k": 0},
        {"ffn_size": -1},
        {"layers": [1, 0]},
        {"layers": [-1]},
        {"layers": None},
        {"state": "packed"},
        {"codec": "2bit"},
        {"combine": "sum"},
        {"combine": "convex", "shared_expert": False},
        {"quant_method": "gptq"},
        {"format_version": 0},
        {"routed": {"quantizer": "int5"}},
        {"routed": {"group": 64}},
        {"shared": "none"},
        {"new_key": 1},
    ],
)
def test_nonsense(nonsense: dict[str, Any]) -> None:
    plain = {**MoteConfig(layers=(0, 1)).to_dict(), **nonsense}
    with pytest.raises(MoteError) as caught:
        MoteConfig.from_dict(plain)
    assert type(caught.value) in (CheckpointError, FormatError)
    assert "\n" not in str(caught.value)
