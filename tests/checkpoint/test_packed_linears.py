"""Packed linears on disk: what opening and `verify` promise about them, without a model around them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mote.checkpoint.accounting import describe, true_bytes
from mote.checkpoint.contract import MODEL_TYPE, MoteConfig
from mote.checkpoint.layout import Linear, codec_of, plain_linears
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.verify import verify
from mote.errors import CheckpointError
from mote.ternary.codecs import CODECS, scales_to_strips
from mote.ternary.format import WeightFormat
from mote.ternary.round_to_nearest import round_to_nearest

Write = Callable[..., Checkpoint]
HIDDEN, FFN, QUERY, KEY_VALUE, VOCAB, LAYERS = 40, 72, 48, 24, 70, 2


def integer(quantizer: Any, group: int = 32) -> WeightFormat:
    return WeightFormat(quantizer=quantizer, scale="absmax", granularity="group", group=group, activation="int8_group")


CONTRACT = MoteConfig(
    state="packed",
    num_experts=0,
    top_k=0,
    shared=integer("int4"),
    attention=integer("int8"),
    head=integer("int4", 64),
    hidden_size=HIDDEN,
    ffn_size=FFN,
    query_size=QUERY,
    key_value_size=KEY_VALUE,
    vocab_size=VOCAB,
)
SHAPES = {
    "mlp.gate_proj": (FFN, HIDDEN),
    "mlp.up_proj": (FFN, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
    "self_attn.q_proj": (QUERY, HIDDEN),
    "self_attn.k_proj": (KEY_VALUE, HIDDEN),
    "self_attn.v_proj": (KEY_VALUE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, QUERY),
}


def packed(module: str, rows: int, cols: int, fmt: WeightFormat) -> dict[str, Tensor]:
    w = torch.randn(rows, cols, generator=torch.Generator().manual_seed(len(module)))
    q, scale, _ = round_to_nearest(w, fmt)
    codec = codec_of(CONTRACT, fmt)
    assert codec is not None
    return {f"{module}.packed": CODECS[codec].pack(q, fmt.group), f"{module}.scale": scales_to_strips(scale)}


def tensors(head: str = "lm_head") -> dict[str, Tensor]:
    made = {
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
        "vision_tower.layers.0.self_attn.q_proj.weight": torch.ones(3, 3),
        "vision_tower.layers.0.mlp.gate_proj.weight": torch.ones(3, 3),
    }
    for layer in range(LAYERS):
        for name, (rows, cols) in SHAPES.items():
            fmt = CONTRACT.shared if name.startswith("mlp") else CONTRACT.attention
            made |= packed(f"model.layers.{layer}.{name}", rows, cols, fmt)
    return made | packed(head, VOCAB, HIDDEN, CONTRACT.head)


def config(contract: MoteConfig = CONTRACT) -> dict[str, Any]:
    return {"model_type": MODEL_TYPE, "base_model_type": "llama", "quantization_config": contract.to_dict()}


@pytest.mark.parametrize("head", ["lm_head", "model.embed_tokens", "language_model.lm_head"])
def test_opens_and_verifies(write_tensors: Write, head: str) -> None:
    made = tensors(head)
    checkpoint = write_tensors(made, config=config())
    assert checkpoint.state == "packed"
    assert verify(checkpoint.root).problems == []
    linears = plain_linears(CONTRACT, checkpoint.tensors)
    assert len(linears) == LAYERS * 7 + 1
    assert linears[head] == Linear(VOCAB, HIDDEN, CONTRACT.head, "int4")
    assert linears["model.layers.1.self_attn.o_proj"] == Linear(HIDDEN, QUERY, CONTRACT.attention, "int8")


def test_bytes_and_summary(write_tensors: Write) -> None:
    checkpoint = write_tensors(tensors(), config=config())
    counted = true_bytes(checkpoint)
    # int8 per 32: inputs 40 are 10 k-groups (8 + 2), 48 are 12; q, k and v of at most 64 rows are one strip.
    assert counted["attention"] == LAYERS * 256 * (10 + 10 + 10 + 12)
    # int4: [72, 40] is 2 strips of 4 + 1 k-groups; [40, 72] is 1 strip of 4 + 4 + 1.
    assert counted["dense_ffn"] == LAYERS * 256 * (2 * 5 + 2 * 5 + 9)
    assert counted["embeddings"] == 256 * 2 * 5
    groups_in_strips = LAYERS * (2 + 2 + 2 + 2 + 2 * 2 + 2 * 2 + 3) + 2 * 1
    assert counted["scales"] == groups_in_strips * 64 * 2
    assert sum(counted.values()) == sum(info.nbytes for info in checkpoint.tensors.values())
    summary = describe(checkpoint)
    assert "mixture" not in summary
    assert summary["formats"]["head"]["group"] == 64
    assert summary["paper_accounting_gib"] == pytest.approx(3 * HIDDEN * FFN * LAYERS * 4 / 8 / 2**30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": integer("int4").__dict__}, "q_proj.packed"),
        ({"shared": integer("int4", 64).__dict__}, r"scale"),
        ({"query_size": 65}, "q_proj.packed"),
        ({"vocab_size": 0}, "rows=0"),
        ({"hidden_size": 41}, "packed"),
    ],
)
def test_a_contract_that_does_not_fit(write_tensors: Write, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_tensors(tensors(), config={**config(), "quantization_config": {**CONTRACT.to_dict(), **change}})


def test_missing_and_doubled_heads(write_tensors: Write) -> None:
    made = tensors()
    lacking = {name: tensor for name, tensor in made.items() if not name.startswith("lm_head")}
    with pytest.raises(CheckpointError, match="0 packed heads"):
        write_tensors(lacking, config=config())
    with pytest.raises(CheckpointError, match="2 packed heads"):
        write_tensors(made | packed("model.embed_tokens", VOCAB, HIDDEN, CONTRACT.head), config=config())
    with pytest.raises(CheckpointError, match=r"lacks tensor 'model\.layers\.1\.self_attn\.k_proj\.scale'"):
        write_tensors({k: v for k, v in made.items() if k != "model.layers.1.self_attn.k_proj.scale"}, config=config())
    with pytest.raises(CheckpointError, match="lost quantization_config"):
        write_tensors(made, config={"model_type": "llama"})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scales_that_are_not_finite(write_tensors: Write, bad: float) -> None:
    made = tensors()
    made["lm_head.scale"][0, 0, 3] = bad
    with pytest.raises(CheckpointError, match=r"lm_head\.scale.*NaN or Inf"):
        write_tensors(made, config=config())


def test_verify_finds_illegal_bytes_and_padding(write_tensors: Write) -> None:
    made = tensors()
    made["model.layers.0.self_attn.q_proj.packed"][0, 0, 0] = 0  # no int8 weight
    made["model.layers.0.self_attn.k_proj.packed"][0, 0, 255] = 7  # row 63 of 24
    made["lm_head.packed"][1, 0, 255] = 0  # row 127 of 70
    problems = sorted(verify(write_tensors(made, config=config()).root).problems)
    assert len(problems) == 3
    assert "lm_head.packed" in problems[0]
    assert "padding" in problems[0]
    assert "padding" in problems[1]
    assert "illegal digit" in problems[2]
