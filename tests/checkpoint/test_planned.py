"""Tensors that are planned are those that a checkpoint is checked against."""

import pytest

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.planned import head_of, planned_tensors, table_of, with_sizes
from mote.checkpoint.writer import planned_files
from mote.errors import FormatError, UnsupportedModelError
from mote.ternary.format import FULL_PRECISION, WeightFormat

INT4 = WeightFormat(quantizer="int4", scale="absmax", granularity="group", group=32, activation="int8_group")
H, F, Q, K, V = 40, 72, 48, 24, 130


def dense(*, tied: bool = True) -> list[PlannedTensor]:
    shapes = {"model.embed_tokens.weight": (V, H)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.q_proj.weight": (Q, H), f"{prefix}self_attn.q_proj.bias": (Q,)}
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (K, H) for name in "kv"}
        shapes |= {f"{prefix}self_attn.o_proj.weight": (H, Q), f"{prefix}mlp.gate_proj.weight": (F, H)}
        shapes |= {f"{prefix}mlp.up_proj.weight": (F, H), f"{prefix}mlp.down_proj.weight": (H, F)}
    if not tied:
        shapes["lm_head.weight"] = (V, H)
    return [PlannedTensor(name, "BF16", shape) for name, shape in shapes.items()]


def planned(mote: MoteConfig | None, **options: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in planned_tensors(dense(**options), mote)}


def test_a_dense_model_stays_as_it_is() -> None:
    assert planned_tensors(dense(), None) == dense()


def test_sizes_come_from_the_shapes() -> None:
    sizes = with_sizes(MoteConfig(layers=(0,)), {tensor.name: tensor.shape for tensor in dense()})
    assert (sizes.hidden_size, sizes.ffn_size, sizes.query_size, sizes.key_value_size) == (H, F, Q, K)
    assert sizes.vocab_size == V


def test_a_mixture_stands_where_its_network_was_and_floats_keep_their_type() -> None:
    found = planned(MoteConfig(layers=(1,), num_experts=3))
    assert found["model.layers.1.mlp.experts.gate_proj"] == ("BF16", (3, F, H))
    assert found["model.layers.1.mlp.router.weight"] == ("F32", (3, H))
    assert found["model.layers.1.mlp.down_proj.weight"] == ("BF16", (H, F))
    assert "model.layers.0.mlp.router.weight" not in found


def test_without_a_shared_expert_the_network_goes() -> None:
    found = planned(MoteConfig(layers=(0, 1), num_experts=2, shared_expert=False, routed=FULL_PRECISION))
    assert not any(name.endswith("mlp.gate_proj.weight") for name in found)


@pytest.mark.parametrize(("tied", "table"), [(True, "model.embed_tokens"), (False, "lm_head")])
def test_the_head_is_the_table_where_it_is_tied(tied: bool, table: str) -> None:
    mote = MoteConfig(state="packed", num_experts=0, top_k=0, routed=FULL_PRECISION, head=INT4, attention=INT4)
    found = planned(mote, tied=tied)
    assert found[f"{table}.packed"][1][0] == 3  # 130 rows are three strips of 64
    assert f"{table}.weight" not in found
    assert ("model.embed_tokens.weight" in found) is not tied
    assert found["model.layers.0.self_attn.q_proj.scale"] == ("BF16", (1, 2, 64))
    assert found["model.layers.0.self_attn.q_proj.bias"] == ("BF16", (Q,))
    names = [tensor.name for tensor in dense(tied=tied)]
    assert (table_of(names), head_of(names)) == ("model.embed_tokens.weight", None if tied else "lm_head")
    assert head_of(found) == (None if tied else "lm_head")


def test_sizes_that_a_codec_cannot_hold() -> None:
    wide = WeightFormat(quantizer="int4", scale="absmax", granularity="group", group=2048, activation="int8_group")
    mote = MoteConfig(state="packed", num_experts=0, top_k=0, routed=FULL_PRECISION, shared=wide)
    with pytest.raises(FormatError, match="int4: group=2048"):
        planned(mote)


def test_models_of_another_kind() -> None:
    with pytest.raises(UnsupportedModelError, match="no decoder layers"):
        planned_tensors([PlannedTensor("encoder.weight", "F32", (3, 3))], MoteConfig(layers=(0,)))
    fused = [tensor for tensor in dense() if ".self_attn." not in tensor.name]
    mote = MoteConfig(state="packed", num_experts=0, top_k=0, routed=FULL_PRECISION, attention=INT4)
    with pytest.raises((UnsupportedModelError, FormatError)):
        planned_tensors(fused, mote)
    with pytest.raises(UnsupportedModelError, match="found 2 tensors embed_tokens"):
        table_of(["a.embed_tokens.weight", "b.embed_tokens.weight"])


def test_files_are_split_as_the_writer_splits_them() -> None:
    whole = planned_files(dense())
    assert list(whole) == ["model.safetensors"]
    parts = planned_files(dense(), max_shard_bytes=20_000)
    assert len(parts) > 1
    data = sum(tensor.nbytes for tensor in dense())
    assert data < sum(whole.values()) < sum(parts.values())
