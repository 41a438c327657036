"""The paper's table, number for number, and true bytes that add up to the files."""

import json
import re
from collections.abc import Callable
from fractions import Fraction

import pytest

from mote.checkpoint.accounting import (
    COMPONENTS,
    component_of,
    describe,
    ffn_bytes,
    file_bytes,
    paper_gib,
    true_bytes,
)
from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.layout import expected_tensors
from mote.checkpoint.shards import Checkpoint
from mote.ternary.format import WeightFormat

Write = Callable[..., Checkpoint]
COLUMNS: dict[str, tuple[Fraction | int, Fraction | int]] = {
    "dense_bf16": (16, 0),
    "moe_llava_bf16": (0, 16),
    "mote_2bit": (16, 2),
    "mote_base3": (16, Fraction(8, 5)),
    "mote_int4_shared_2bit": (4, 2),
    "mote_int4_shared_base3": (4, Fraction(8, 5)),
    "moe_llava_int3": (0, 3),
}
"""Bits a weight of the shared and of the routed experts."""
TABLE = {
    (896, 4864, 24): (0.58, 2.34, 0.88, 0.82, 0.44, 0.38, 0.44),
    (1536, 8960, 28): (2.15, 8.61, 3.23, 3.01, 1.61, 1.40, 1.61),
    (2048, 11008, 36): (4.54, 18.14, 6.80, 6.35, 3.40, 2.95, 3.40),
}


@pytest.mark.parametrize("sizes", TABLE)
def test_the_papers_table(sizes: tuple[int, int, int]) -> None:
    row = [paper_gib(*sizes, shared_bits=shared, routed_bits=routed) for shared, routed in COLUMNS.values()]
    assert tuple(round(value, 2) for value in row) == TABLE[sizes]


def test_scales_are_what_the_paper_leaves_out() -> None:
    # INT4 with fp16 scales per 64 weights is 4.25 bits: 2.95 becomes 3.02 at 3B.
    true = paper_gib(2048, 11008, 36, shared_bits=Fraction(17, 4), routed_bits=Fraction(8, 5))
    assert round(true, 2) == 3.02
    assert ffn_bytes(2048, 11008, 36) == 2 * 3 * 2048 * 11008 * 36


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("model.vision_tower.encoder.layer.0.mlp.fc1.weight", "vision_tower"),
        ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", "vision_tower"),
        ("model.multi_modal_projector.layernorm.weight", "connector"),
        ("language_model.model.embed_tokens.weight", "embeddings"),
        ("language_model.lm_head.weight", "embeddings"),
        ("model.layers.3.self_attn.q_proj.bias", "attention"),
        ("model.layers.3.self_attn.q_norm.weight", "attention"),
        ("model.layers.3.post_attention_layernorm.weight", "norms"),
        ("model.norm.weight", "norms"),
        ("model.layers.3.mlp.up_proj.weight", "shared_experts"),
        ("model.layers.3.mlp.up_proj.packed", "shared_experts"),
        ("model.layers.30.mlp.up_proj.weight", "dense_ffn"),
        ("model.layers.3.mlp.up_proj.scale", "scales"),
        ("model.layers.30.mlp.up_proj.packed", "dense_ffn"),
        ("model.layers.3.self_attn.q_proj.packed", "attention"),
        ("model.layers.3.self_attn.q_proj.scale", "scales"),
        ("language_model.lm_head.packed", "embeddings"),
        ("lm_head.scale", "scales"),
        ("model.embed_tokens.packed", "embeddings"),
        ("model.language_model.embed_tokens.scale", "scales"),
        ("model.layers.3.mlp.experts.up_proj_scale", "scales"),
        ("model.layers.3.mlp.experts.gain", "scales"),
        ("model.layers.3.mlp.experts.up_proj", "routed_experts"),
        ("model.layers.3.mlp.experts.up_proj_packed", "routed_experts"),
        ("model.layers.3.mlp.router.weight", "routers"),
        ("something.else", "other"),
    ],
)
def test_components(name: str, component: str) -> None:
    assert component_of(name, frozenset({"model.layers.3.mlp."})) == component


def test_true_bytes_add_up(write_mixture: Write) -> None:
    checkpoint = write_mixture(MoteConfig(layers=(0, 2), state="packed", codec="2bit"), max_shard_bytes=9000)
    counted = true_bytes(checkpoint)
    assert tuple(counted) == COMPONENTS
    assert counted["other"] == 0
    assert counted["routers"] == 2 * 4 * 24 * 4
    assert counted["scales"] == 2 * 3 * 4 * 4
    assert counted["shared_experts"] == 2 * 3 * 24 * 40 * 2
    assert counted["dense_ffn"] == 3 * 24 * 40 * 2
    # [40, 24]: 1 strip of 64 rows, 2 groups of 16 inputs; [24, 40]: 1 strip, 3 groups.
    assert counted["routed_experts"] == 2 * 4 * (2 + 2 + 3) * 256
    on_disk = sum(path.stat().st_size for path in checkpoint.root.glob("*.safetensors"))
    assert file_bytes(checkpoint) == on_disk
    assert sum(counted.values()) < on_disk


def test_the_3b_shape_with_an_int4_shared_expert() -> None:
    """What a file holds of the paper's 2.95 GiB: every tensor of the mixtures, routers, scales and padding included."""
    int4 = WeightFormat(quantizer="int4", scale="absmax", granularity="group", group=64, activation="int8_group")
    hidden, ffn, layers = 2048, 11008, 36
    mote = MoteConfig(layers=tuple(range(layers)), state="packed", codec="base3", shared=int4)
    tensors = expected_tensors(mote, "model.layers.0.mlp.", hidden, ffn)
    true = layers * sum(PlannedTensor(name, dtypes[0], shape).nbytes for name, (dtypes, shape) in tensors.items())
    shared, routed = COLUMNS["mote_int4_shared_base3"]
    paper = paper_gib(hidden, ffn, layers, shared_bits=shared, routed_bits=routed)
    assert round(paper, 2) == 2.95
    assert paper < true / 2**30 <= 3.05
    scales = sum(PlannedTensor("", d[0], s).nbytes for name, (d, s) in tensors.items() if name.endswith("proj.scale"))
    assert scales == 3 * hidden * ffn // 64 * 2  # bf16, and neither size has padding


def test_describe(write_mixture: Write) -> None:
    packed = describe(write_mixture(MoteConfig(layers=(0, 2), state="packed", codec="2bit")))
    assert json.loads(json.dumps(packed)) == packed
    mixture = packed["mixture"]
    assert packed["state"] == "packed"
    assert packed["base_model_type"] == "llama"
    assert packed["id"]
    assert mixture["expert_weights"] == 2 * 4 * 3 * 24 * 40
    stored = packed["true_bytes"]["routed_experts"] + packed["true_bytes"]["scales"]
    assert mixture["bits_per_expert_weight"] == 8 * stored / mixture["expert_weights"]
    assert mixture["same_layers_bytes"] == {
        "dense_ffn_bf16": 2 * 3 * 24 * 40 * 2,
        "moe_llava_experts_bf16": 4 * 2 * 3 * 24 * 40 * 2,
    }
    assert mixture["paper_accounting_gib"] == pytest.approx(2 * 3 * 24 * 40 * (16 + 4 * 2) / 8 / 2**30)
    dense = describe(write_mixture(None, "dense"))
    assert dense["state"] == "dense"
    assert "mixture" not in dense
    assert not re.search("paper_accounting", json.dumps(dense))
    assert dense["paper_gib"] == pytest.approx(2 * 3 * 3 * 24 * 40 / 2**30)
    # Of three layers two hold a mixture.
    assert packed["paper_gib"] == pytest.approx(mixture["paper_accounting_gib"] + dense["paper_gib"] / 3)


def test_describe_counts_a_format_not_its_storage(write_mixture: Write) -> None:
    int4 = WeightFormat(quantizer="int4", scale="absmax", granularity="group", group=8)
    mixture = describe(write_mixture(MoteConfig(layers=(1,), routed=int4, shared=int4)))["mixture"]
    assert mixture["bits_per_expert_weight"] == 32
    assert mixture["paper_accounting_gib"] == pytest.approx(3 * 24 * 40 * (4 + 4 * 4) / 8 / 2**30)
