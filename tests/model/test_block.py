"""The block computes its equation, for every combine rule and both presets."""

import copy

import pytest
import torch
from torch.nn.functional import silu

import mote
from mote.errors import FormatError, UnsupportedModelError
from mote.model.block import QuantizedLinear, blocks, freeze, install
from mote.model.families import PROJECTIONS
from mote.ternary.activations import quantize_activation
from mote.ternary.quantize import dequantize_weight, quantize_weight


def _linear(x, w, fmt):
    if fmt.quantizer == "none":
        return x @ w.T
    q, scale = quantize_weight(w[None], fmt)
    if fmt.activation == "none":
        return x @ dequantize_weight(q, scale, fmt)[0].T
    x_q, s = quantize_activation(x)
    return (x_q.float() * s[:, None]) @ dequantize_weight(q, scale, fmt)[0].T


def _naive(block, h):
    """One token and one expert at a time, dequantised, in fp32."""
    out = []
    fmt = block.mote.routed
    for token in h:
        p = (block.router.weight @ token).softmax(-1)
        chosen = p.sort(descending=True, stable=True).indices[: block.mote.top_k]
        gates = p[chosen] / (p[chosen].sum() if block.mote.normalize_gates else 1)
        routed = torch.zeros_like(token)
        for gate, e in zip(gates, chosen, strict=True):
            w = [getattr(block.experts, name)[e] for name in PROJECTIONS]
            x = token[None]
            y = _linear(silu(_linear(x, w[0], fmt)) * _linear(x, w[1], fmt), w[2], fmt)[0]
            routed += gate * y * (1 if block.experts.gain is None else block.experts.gain[e])
        if block.mote.shared_expert:
            shared = block.shared(token)
            routed = (1 - gates.sum() if block.mote.combine == "convex" else 1) * shared + routed
        out.append(routed)
    return torch.stack(out)


SETTINGS = {
    "mote": {},
    "moe-llava": {"config": "moe-llava"},
    "convex": {"combine": "convex"},
    "gated": {"combine": "gated"},
    "many": {"num_experts": 7, "top_k": 3},
    "row": {"routed": mote.WeightFormat(granularity="row")},
    "group": {"routed": mote.WeightFormat(granularity="group", group=16, scale="lloyd_max")},
    "int4": {"routed": mote.WeightFormat(quantizer="int4", scale="absmax", granularity="row")},
    "weights only": {"routed": mote.WeightFormat(activation="none")},
}


def _scramble(model):
    """Experts apart from each other, gains apart from 0."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for block in blocks(model):
            for weight in block.experts.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
            block.router.weight.mul_(20)
    return model


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("grad", [False, True])
def test_block_is_its_equation(name, grad, tiny):
    model = _scramble(mote.upcycle(tiny("llama"), **SETTINGS[name]))
    block = blocks(model)[1]
    h = torch.randn(23, 36, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block(h), _naive(block, h), rtol=1e-4, atol=1e-5)


def test_presets():
    from mote.upcycle import PRESETS

    mine, theirs = PRESETS["mote"], PRESETS["moe-llava"]
    assert (mine.shared_expert, mine.num_experts, mine.top_k, mine.normalize_gates) == (True, 4, 1, False)
    assert mine.routed.quantizer == "ternary"
    assert mine.shared.quantizer == "none"
    assert (theirs.shared_expert, theirs.num_experts, theirs.top_k, theirs.normalize_gates) == (False, 4, 2, True)
    assert theirs.routed.quantizer == "none"


def test_gated_starts_as_the_dense_model(family, tiny, inputs):
    dense = tiny(family)
    model = mote.upcycle(copy.deepcopy(dense), combine="gated")
    with torch.no_grad():
        assert torch.equal(dense(**inputs(family)).logits, model(**inputs(family)).logits)


def test_moe_llava_starts_as_the_dense_model(tiny, inputs):
    """Equal experts and normalised gates: top-2 of copies is the network itself."""
    dense = tiny("llama")
    model = mote.upcycle(copy.deepcopy(dense), config="moe-llava")
    with torch.no_grad():
        torch.testing.assert_close(dense(**inputs("llama")).logits, model(**inputs("llama")).logits)
    assert not hasattr(blocks(model)[0], "gate_proj")


def test_only_the_placed_layers_change(tiny):
    model = mote.upcycle(tiny("llama", num_hidden_layers=5), placement="sparse")
    assert [block.layer_index for block in blocks(model)] == [0, 2, 4]
    assert model.config.quantization_config.contract.layers == (0, 2, 4)


def test_bf16_model_keeps_masters_and_rounds_once(tiny):
    model = mote.upcycle(tiny("llama")).to(torch.bfloat16)
    block = blocks(model)[0]
    assert {p.dtype for p in block.experts.parameters()} == {torch.float32}
    assert block.gate_proj.weight.dtype == torch.bfloat16
    h = torch.randn(5, 36, dtype=torch.bfloat16)
    with torch.no_grad():
        expected = block.shared(h).float() + block.experts(h, block.router(h))
        assert torch.equal(block(h), expected.to(torch.bfloat16))


@pytest.mark.parametrize("trained", [False, True])
def test_quantised_shared_expert(trained, tiny, inputs):
    fmt = mote.WeightFormat(quantizer="int8", scale="absmax", granularity="row")
    model = mote.upcycle(tiny("llama"), shared=fmt, train_shared=trained)
    linear = blocks(model)[0].gate_proj
    assert isinstance(linear, QuantizedLinear)
    assert linear.weight.requires_grad == trained
    x = torch.randn(6, 36)
    torch.testing.assert_close(linear(x), _linear(x, linear.weight, fmt), rtol=1e-4, atol=1e-5)
    model.train()
    model(**inputs("llama"), labels=inputs("llama")["input_ids"]).loss.backward()
    assert (linear.weight.grad is not None) == trained


def test_same_numbers_every_time_and_for_every_batch_order(tiny):
    block = blocks(_scramble(mote.upcycle(tiny("llama"), num_experts=5, top_k=2)))[0]
    h = torch.randn(31, 36)
    order = torch.randperm(31)
    with torch.no_grad():
        first = block(h)
        assert torch.equal(first, block(h))
        torch.testing.assert_close(block(h[order]), first[order])


def test_empty_input_and_single_expert(tiny):
    block = blocks(mote.upcycle(tiny("llama"), num_experts=1))[0]
    with torch.no_grad():
        assert block(torch.zeros(1, 0, 36)).shape == (1, 0, 36)
        assert block(torch.zeros(1, 3, 36)).shape == (1, 3, 36)


def test_installing_twice_and_on_missing_layers_is_refused(tiny):
    model = mote.upcycle(tiny("llama"))
    with pytest.raises(UnsupportedModelError, match="already"):
        mote.upcycle(model)
    contract = mote.MoteConfig(layers=(0, 9))
    with pytest.raises(UnsupportedModelError, match="layer 9"):
        install(tiny("llama"), contract)


def test_freeze_restores_what_stage_three_trains(tiny):
    model = mote.upcycle(tiny("llama"))
    model.requires_grad_(True)
    freeze(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if ".experts." in n or ".router." in n}


def test_convex_needs_a_shared_expert(tiny):
    with pytest.raises(FormatError, match="shared expert"):
        mote.upcycle(tiny("llama"), combine="convex", shared_expert=False)
