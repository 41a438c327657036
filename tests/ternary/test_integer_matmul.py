"""The integer product is exact at every shape and value, on the fast path and on the fp32 one."""

import itertools

import pytest
import torch

from mote.ternary import integer_matmul as module
from mote.ternary.integer_matmul import integer_matmul

SIZES = (1, 2, 3, 4, 5, 17, 64, 65)


@pytest.fixture(params=["library", "fp32"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    fast = request.param == "library" and module.int8_matmul_is_exact()
    monkeypatch.setattr(module, "int8_matmul_pays", lambda: fast)
    return str(request.param)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("level", [1, 127])
def test_awkward_shapes(level: int) -> None:
    generator = torch.Generator().manual_seed(level)
    for tokens, outputs, inputs in itertools.product(SIZES, SIZES, SIZES):
        x_q = torch.randint(-128, 128, (tokens, inputs), dtype=torch.int8, generator=generator)
        q = torch.randint(-level, level + 1, (outputs, inputs), dtype=torch.int8, generator=generator)
        acc = integer_matmul(x_q, q, level)
        assert acc.dtype == torch.int32
        assert torch.equal(acc.long(), x_q.long() @ q.long().t()), (tokens, outputs, inputs)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("inputs", "level"), [(1031, 127), (1032, 127), (3000, 127), (9000, 31), (9001, 1)])
def test_largest_operands_over_long_sums(inputs: int, level: int) -> None:
    x_q = torch.full((3, inputs), -128, dtype=torch.int8)
    x_q[1] = 127
    q = torch.full((5, inputs), level, dtype=torch.int8)
    q[2:] *= -1
    assert torch.equal(integer_matmul(x_q, q, level).long(), x_q.long() @ q.long().t())


@pytest.mark.usefixtures("path")
def test_column_slices_and_no_tokens() -> None:
    x_q = torch.randint(-128, 128, (9, 100), dtype=torch.int8)
    q = torch.randint(-1, 2, (6, 100), dtype=torch.int8)
    assert torch.equal(
        integer_matmul(x_q[:, 16:64], q[:, 16:64], 1).long(), x_q[:, 16:64].long() @ q[:, 16:64].long().t()
    )
    assert integer_matmul(x_q[:0], q, 1).shape == (0, 6)


@pytest.mark.usefixtures("path")
def test_autocast_does_not_reach_it() -> None:
    x_q = torch.full((2, 999), 127, dtype=torch.int8)
    q = torch.ones(3, 999, dtype=torch.int8)
    with torch.autocast("cpu", torch.bfloat16):
        assert integer_matmul(x_q, q, 1).tolist() == [[126873] * 3] * 2


def test_a_library_that_is_slow_or_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    def int_mm(x_q: torch.Tensor, q_t: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return (x_q.float() @ q_t.float()).to(torch.int32)

    monkeypatch.setattr(torch, "_int_mm", int_mm)
    monkeypatch.setattr(module, "int8_matmul_is_exact", lambda: True)
    assert module.int8_matmul_pays.__wrapped__() is False, "exact and slow"
    monkeypatch.setattr(torch, "_int_mm", lambda x_q, q_t: torch.zeros(len(x_q), q_t.shape[1], dtype=torch.int32))
    assert module.int8_matmul_pays.__wrapped__() is True, "exact and quick"
    monkeypatch.setattr(module, "int8_matmul_is_exact", lambda: False)
    assert module.int8_matmul_pays.__wrapped__() is False, "quick and wrong"
