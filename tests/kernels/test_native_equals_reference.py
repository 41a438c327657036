"""Every native kernel against the plain reference: the same bits, at awkward shapes, on 1 and 2 threads."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mote import kernels
from mote.kernels import reference

ISAS = kernels.info()["isas"]
CODECS = ("2bit", "base3")
# (N, K, T): one of everything, edges of strips (64), k-groups (16, 20), tiles (6 and 4 tokens) and blocks
# (100 and 64 quads of inputs; 240 tokens).
SHAPES = [
    (1, 1, 1),
    (3, 7, 2),
    (64, 16, 1),
    (64, 20, 6),
    (65, 33, 5),
    (63, 401, 7),
    (130, 257, 3),
    (129, 419, 1),
    (66, 1031, 4),
    (5, 37, 481),
    (192, 576, 13),
    (320, 1100, 9),  # enough work that a second thread joins in
]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    kernels.select_isa(request.param)
    yield request.param
    kernels.select_isa(None)


def random_case(rows: int, cols: int, tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1_000_003 + cols * 1009 + tokens)
    q_NK = torch.randint(-1, 2, (rows, cols), dtype=torch.int8, generator=generator)
    x_q = torch.randint(-128, 128, (tokens, cols), dtype=torch.int8, generator=generator)
    return q_NK, x_q


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("rows", "cols", "tokens"), SHAPES)
def test_integers_are_exact(isa: str, codec: str, rows: int, cols: int, tokens: int) -> None:
    q_NK, x_q = random_case(rows, cols, tokens)
    packed = reference.pack(q_NK, codec)
    expected = reference.ternary_matmul(packed, codec, rows, cols, x_q)
    assert torch.equal(expected, (x_q.double() @ q_NK.double().t()).to(torch.int32))
    for threads in (1, 2):
        poisoned = torch.full((tokens, rows), -(2**31), dtype=torch.int32)
        got = kernels.ternary_matmul(packed, codec, rows, cols, x_q, threads=threads, out=poisoned)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
@pytest.mark.parametrize(("rows", "cols", "tokens"), SHAPES)
def test_scaled_outputs_have_the_same_bits(
    isa: str, codec: str, granularity: str, rows: int, cols: int, tokens: int
) -> None:
    q_NK, x_q = random_case(rows, cols, tokens)
    group = 48 if granularity == "group" else 0
    packed = reference.pack(q_NK, codec, group)
    s = torch.rand(tokens) * 0.1
    shape = {"tensor": (), "row": (rows,), "group": (rows, -(-cols // 48))}[granularity]
    scale = torch.rand(shape) * 0.01
    arguments = (packed, scale, codec, rows, cols, group, granularity, x_q, s)
    expected = reference.ternary_linear(*arguments)
    for threads in (1, 2):
        poisoned = torch.full((tokens, rows), float("nan"))
        got = kernels.ternary_linear(*arguments, threads=threads, out=poisoned)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("weight", [-1, 1])
@pytest.mark.parametrize("tokens", [1, 5])
def test_extremes_do_not_overflow(isa: str, codec: str, value: int, weight: int, tokens: int) -> None:
    q_NK = torch.full((70, 4111), weight, dtype=torch.int8)
    x_q = torch.full((tokens, 4111), value, dtype=torch.int8)
    got = kernels.ternary_matmul(kernels.pack(q_NK, codec), codec, 70, 4111, x_q, threads=1)
    assert torch.equal(got, torch.full((tokens, 70), weight * value * 4111, dtype=torch.int32))


@pytest.mark.parametrize("codec", CODECS)
def test_scale_groups_larger_than_the_matrix_and_of_one_k_group(isa: str, codec: str) -> None:
    for group in (16, 32, 320):
        q_NK, x_q = random_case(67, 100, 3)
        packed = reference.pack(q_NK, codec, group)
        got = kernels.ternary_matmul(packed, codec, 67, 100, x_q, group)
        assert torch.equal(got, reference.ternary_matmul(packed, codec, 67, 100, x_q, group))


@pytest.mark.parametrize("codec", CODECS)
def test_rows_of_any_stride_and_weights_of_any_alignment(isa: str, codec: str) -> None:
    q_NK, _ = random_case(70, 100, 1)
    packed = reference.pack(q_NK, codec)
    moved = torch.empty(packed.numel() + 3, dtype=torch.uint8)[3:]
    moved.copy_(packed.flatten())
    wide = torch.randint(-128, 128, (5, 170), dtype=torch.int8)
    out = torch.full((5, 200), -7, dtype=torch.int32)
    kernels.ternary_matmul(moved, codec, 70, 100, wide[:, 13:113], out=out[:, 60:130])
    assert torch.equal(out[:, 60:130], reference.ternary_matmul(packed, codec, 70, 100, wide[:, 13:113]))
    assert bool((out[:, :60] == -7).all())
    assert bool((out[:, 130:] == -7).all())


@pytest.mark.parametrize("codec", CODECS)
def test_no_tokens_give_no_rows(isa: str, codec: str) -> None:
    packed = reference.pack(torch.zeros(3, 5, dtype=torch.int8), codec)
    empty = torch.empty((0, 5), dtype=torch.int8)
    assert kernels.ternary_matmul(packed, codec, 3, 5, empty).shape == (0, 3)
    got = kernels.ternary_linear(packed, torch.ones(()), codec, 3, 5, 0, "tensor", empty, torch.empty(0))
    assert got.shape == (0, 3)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("group", [0, 16, 48])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 7), (64, 16), (65, 20), (130, 257)])
def test_packing_writes_the_codecs_bytes(codec: str, group: int, rows: int, cols: int) -> None:
    q_NK, _ = random_case(rows, cols, 1)
    packed = kernels.pack(q_NK, codec, group)
    assert torch.equal(packed, reference.pack(q_NK, codec, group))
    assert kernels.packed_bytes(codec, rows, cols, group) == reference.packed_bytes(codec, rows, cols, group)
    assert torch.equal(kernels.unpack(packed, codec, rows, cols, group), q_NK)


def test_activations_quantise_to_the_same_bits() -> None:
    x = torch.randn(37, 1003, generator=torch.Generator().manual_seed(3)) * 5
    x[0] = 0
    x[1] = 1e-9
    x[2, 5] = 3e38
    x[3] = torch.arange(1003) / 2 - 200  # halves: ties to even
    for values in (x, x[:, :1], x[:, 100:300]):
        x_q, s = kernels.quantize_activation(values)
        expected_q, expected_s = reference.quantize_activation(values)
        assert torch.equal(x_q, expected_q)
        assert torch.equal(s, expected_s)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_shows_in_its_token_only(bad: float) -> None:
    x = torch.ones(3, 9)
    x[1, 4] = bad
    _, s = kernels.quantize_activation(x)
    assert s.isfinite().tolist() == [True, False, True]
