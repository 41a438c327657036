"""Threads of the pool compute as their caller does."""

import torch

from mote import kernels


def test_helpers_flush_denormals_when_their_caller_does() -> None:
    """All products here are denormal: zeros where they are flushed, 6e-39 in sum where not."""
    rows = 65536  # enough for every thread to get some
    w, x = torch.full((rows, 64), 1e-20), torch.full((1, 64), 1e-20)
    kept = [kernels.linear(w, None, "f32", rows, 64, 0, "tensor", x, threads=n) for n in (1, 3)]
    if not torch.set_flush_denormal(True):
        return
    try:
        flushed = [kernels.linear(w, None, "f32", rows, 64, 0, "tensor", x, threads=n) for n in (1, 3)]
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(*kept)
    assert kept[0].min() > 0
    assert torch.equal(*flushed)
    assert flushed[0].max() == 0
