"""The router is fp32 everywhere, and its choice is determined."""

import torch

from mote.model.router import Router


def _router(num_experts=4, top_k=1, normalize=False):
    router = Router(6, num_experts, top_k, normalize_gates=normalize)
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(0))
    return router


def test_ties_go_to_the_lowest_index():
    router = _router(8, 3)
    torch.nn.init.zeros_(router.weight)
    route = router(torch.randn(5, 6))
    assert route.expert_Tk.tolist() == [[0, 1, 2]] * 5
    assert torch.equal(route.gate_Tk, torch.full((5, 3), 1 / 8))
    with torch.no_grad():
        router.weight[5:] = 0  # rows 5, 6, 7 tie above the rest
        router.weight[:5] = -1
    assert router(torch.ones(1, 6)).expert_Tk.tolist() == [[5, 6, 7]]


def test_gate_is_the_probability_and_only_normalised_when_asked():
    h = torch.randn(7, 6)
    p, expert, gate = _router(top_k=2)(h)
    torch.testing.assert_close(p.sum(-1), torch.ones(7))
    assert torch.equal(gate, p.gather(1, expert))
    normalised = _router(top_k=2, normalize=True)(h).gate_Tk
    torch.testing.assert_close(normalised, gate / gate.sum(-1, keepdim=True))


def test_stays_float32_in_a_bf16_model_and_under_autocast():
    router, h = _router(), torch.randn(9, 6)
    reference = router(h.bfloat16())
    router.to(torch.bfloat16)
    assert router.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        route = router(h.bfloat16())
    assert route.p_TN.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(route, reference, strict=True))
