"""Routed experts by themselves."""

import pytest
import torch

from mote.checkpoint.contract import MoteConfig
from mote.model.experts import FloatExperts
from mote.model.router import Route
from mote.ternary.format import WeightFormat

FORMATS = {
    "ternary": WeightFormat(),
    "ternary, float activations": WeightFormat(activation="none"),
    "int4 per group": WeightFormat(quantizer="int4", scale="absmax", granularity="group", group=8),
    "int4, activations per group": WeightFormat(
        quantizer="int4", scale="absmax", granularity="group", group=8, activation="int8_group"
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_a_gain_of_one_changes_no_bit(name: str) -> None:
    """Whatever enters the product: the gain is in the scale, and nothing else of the arithmetic moves."""
    torch.manual_seed(0)
    plain = FloatExperts(MoteConfig(num_experts=2, routed=FORMATS[name]), 24, 40)
    gated = FloatExperts(MoteConfig(num_experts=2, routed=FORMATS[name], combine="gated"), 24, 40)
    for weight in (plain.gate_proj, plain.up_proj, plain.down_proj):
        torch.nn.init.normal_(weight)
    gated.load_state_dict({**plain.state_dict(), "gain": torch.ones(2)})
    h = torch.randn(6, 24)
    h[:, 0] *= 30  # one scale per token is not one per group
    expert_Tk = torch.tensor([[0], [1], [1], [0], [1], [1]])
    route = Route(torch.zeros(6, 2), expert_Tk, torch.rand(6, 1))
    assert torch.equal(gated(h, route), plain(h, route))
