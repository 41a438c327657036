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
    scale=st.sampled_from(["absmean", "lloyd_max", "absmax", "given"]),
    granularity=st.sampled_from(["tensor", "row"]),
) | st.just(WeightFormat(granularity="group", group=64))

integers = st.builds(
    WeightFormat,
    quantizer=st.sampled_from(["int2", "int3", "int4", "int6", "int8"]),
    scale=st.sampled_from(["absmax", "given"]),
    granularity=st.just("group"),
    group=st.sampled_from([32, 64, 128]),
    activation=st.just("int8_group"),
    symmetric=st.booleans(),
)
INT4 = {"quantizer": "int4", "scale": "absmax", "granularity": "group", "group": 64, "activation": "int8_group"}


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


@given(attention=integers | st.just(FULL_PRECISION), head=integers | st.just(FULL_PRECISION), shared=integers)
def test_json_round_trip_of_a_dense_model_that_is_packed(**formats_: WeightFormat) -> None:
    sizes: Any = {"hidden_size": 24, "ffn_size": 40, "query_size": 16, "key_value_size": 8, "vocab_size": 99}
    config = MoteConfig(state="packed", num_experts=0, top_k=0, **formats_, **sizes)
    plain = json.loads(json.dumps(config.to_dict()))
    assert MoteConfig.from_dict(plain) == config


def test_a_config_without_the_newer_keys_still_loads() -> None:
    plain = MoteConfig(layers=(0, 1), state="packed", codec="base3").to_dict()
    for name in ("attention", "head", "query_size", "key_value_size", "vocab_size"):
        del plain[name]
    config = MoteConfig.from_dict(plain)
    assert (config.attention, config.head) == (FULL_PRECISION, FULL_PRECISION)
    assert config == MoteConfig(layers=(0, 1), state="packed", codec="base3")


@given(routed=integers)
def test_integer_experts_need_no_codec(routed: WeightFormat) -> None:
    config = MoteConfig(state="packed", layers=(0,), routed=routed, shared_expert=False)
    assert MoteConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_symmetric_formats_are_written_as_before_there_were_others() -> None:
    plain = MoteConfig(layers=(0,)).to_dict()
    assert all("symmetric" not in plain[name] for name in ("routed", "shared", "attention", "head"))
    other = WeightFormat(**INT4, symmetric=False)
    assert MoteConfig(layers=(0,), shared=other).to_dict()["shared"]["symmetric"] is False


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
        {"attention": INT4},
        {"head": INT4},
        {"state": "packed", "codec": "2bit", "attention": {**INT4, "activation": "int8"}},
        {"state": "packed", "codec": "2bit", "head": {**INT4, "quantizer": "binary"}},
        {"state": "packed", "codec": "2bit", "head": {"quantizer": "int4", "symmetric": False}},
        {"shared": {**INT4, "symmetric": "no"}},
        {"shared": {**INT4, "quantizer": "ternary", "symmetric": False}},
        {"state": "packed", "codec": "2bit", "head": {**INT4, "scale": "lloyd_max"}},
        {"state": "packed", "codec": "2bit", "attention": {"quantizer": "ternary"}},
        {"shared": {**INT4, "granularity": "row", "group": 0}},
        {"state": "packed", "layers": [], "num_experts": 0},
        {"state": "packed", "layers": [], "num_experts": 0, "top_k": 0, "codec": "2bit"},
        {"layers": [], "num_experts": 0, "top_k": 0},
        {"query_size": -1},
        {"vocab_size": 2.5},
        {"new_key": 1},
    ],
)
def test_nonsense(nonsense: dict[str, Any]) -> None:
    plain = {**MoteConfig(layers=(0, 1)).to_dict(), **nonsense}
    with pytest.raises(MoteError) as caught:
        MoteConfig.from_dict(plain)
    assert type(caught.value) in (CheckpointError, FormatError)
    assert "\n" not in str(caught.value)
