"""The router: which experts see a token, and with what weight.

    logits = W_router h (fp32, N values)      p = softmax(logits)      e = the top_k largest logits

Everything is fp32 even under autocast and in a bf16 model, because a rounded logit changes the choice. Ties go to the
lowest index. With the paper's top-1 the gate is p_e itself; MoE-LLaVA's top-2 divides the two gates by their sum.

Shapes: T tokens, H hidden, N experts, k chosen.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mote.model.precision import KeepFloat32

ROUTER_STD = 0.02
"""Standard deviation of the router's normal initialisation."""


class Route(NamedTuple):
    """The router's decision: p_TN probabilities, expert_Tk chosen indices, gate_Tk their weights (fp32, int64,
    fp32)."""

    p_TN: Tensor
    expert_Tk: Tensor
    gate_Tk: Tensor


class Router(KeepFloat32, nn.Module):
    """Linear router without bias; `weight` is [N, H] fp32 and stays so under `.to(dtype)`."""

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, *, normalize_gates: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, dtype=torch.float32))
        self.top_k = top_k
        self.normalize_gates = normalize_gates

    def forward(self, h_TH: Tensor) -> Route:
        """h_TH of any float dtype to the route of each token."""
        with torch.autocast(h_TH.device.type, enabled=False):
            logits_TN = nn.functional.linear(h_TH.float(), self.weight.float())
            p_TN = logits_TN.softmax(-1)
            # A stable descending sort is the only order that promises the lowest index among equals.
            order_TN = torch.sort(logits_TN.detach(), dim=-1, descending=True, stable=True).indices
            expert_Tk = order_TN[:, : self.top_k]
            gate_Tk = p_TN.gather(1, expert_Tk)
            if self.normalize_gates:
                gate_Tk = gate_Tk / gate_Tk.sum(-1, keepdim=True)
        return Route(p_TN, expert_Tk, gate_Tk)
