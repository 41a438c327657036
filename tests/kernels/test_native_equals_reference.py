"""Every native kernel against the plain reference: the same bits, at awkward shapes, on 1, 2 and 5 threads."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mote import kernels
from mote.kernels import reference
from mote.ternary.codecs import CODECS as ALL
from mote.ternary.codecs import scales_to_strips

ISAS = kernels.info()["isas"]
TERNARY = ("2bit", "base3")
# (codec, inputs per scale group); 40 is no divisor of a tile, 512 is larger than one
FORMATS = [("2bit", 0), ("base3", 0), ("2bit", 48), ("base3", 48), ("base3", 60)]
FORMATS += [(codec, group) for codec in ("int4", "int8") for group in (8, 32, 40, 64, 128, 512)]
# Widened into tiles of int8, which has been tried at all shapes: these are about the tiles.
WIDENED = [("int2", 48), ("int3", 32), ("int3", 96), ("int3", 1024), ("int6", 64), ("uint8", 40)]
ZEROS = [("int4", 64), ("int2", 16), ("int3", 32), ("int6", 64), ("uint8", 4), ("uint8", 40)]
"""Integers whose grid is not symmetric; 4 inputs a group are more groups than are done at once."""
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
    (576, 1536, 2),
    (896, 4864, 1),
    (320, 1100, 9),  # enough work that other threads join in
]
FEW_SHAPES = [(1, 1, 1), (65, 33, 5), (66, 1031, 4), (129, 419, 1), (5, 37, 481), (320, 1100, 9)]
CASES = [
    (*shape, *fmt) for fmts, shapes in ((FORMATS, SHAPES), (WIDENED, FEW_SHAPES)) for fmt in fmts for shape in shapes
]


@pytest.fixture(autouse=True)
def default_isa() -> Iterator[None]:
    yield
    kernels.select_isa(None)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> str:
    kernels.select_isa(request.param)
    return str(request.param)


def each_isa_and_threads() -> Iterator[tuple[str, int]]:
    """Selects one ISA after the other: the reference takes longer than the kernels, and is asked once for all."""
    for name in ISAS:
        kernels.select_isa(name)
        yield from ((name, threads) for threads in (1, 2, 5))


def random_case(codec: str, rows: int, cols: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Legal weights int8 [N, K] and any integers int8 [T, K]."""
    generator = torch.Generator().manual_seed(rows * 1_000_003 + cols * 1009 + tokens)
    low, high = ALL[codec].low, ALL[codec].high
    q_NK = torch.randint(low, high + 1, (rows, cols), dtype=torch.int8, generator=generator)
    x_q = torch.randint(-128, 128, (tokens, cols), dtype=torch.int8, generator=generator)
    return q_NK, x_q


def random_scales(codec: str, granularity: str, rows: int, cols: int, group: int) -> Tensor:
    groups = -(-cols // group) if group else 1
    generator = torch.Generator().manual_seed(rows + cols + group)
    shape = {"tensor": (), "row": (rows,), "group": (rows, groups)}[granularity]
    scale = torch.rand(shape, generator=generator) * 0.01
    return scale if codec in TERNARY else scales_to_strips(scale)


def random_zeros(codec: str, rows: int, cols: int, group: int) -> Tensor:
    """Zero points about the middle of the codes, integers for every other group."""
    generator = torch.Generator().manual_seed(rows + cols + group)
    zero = torch.randn(rows, -(-cols // group), generator=generator) + ALL[codec].offset
    zero[:, ::2] = zero[:, ::2].round()
    return scales_to_strips(zero)


def random_inputs(tokens: int, cols: int) -> Tensor:
    generator = torch.Generator().manual_seed(tokens + cols)
    return torch.randn(tokens, cols, generator=generator) * torch.rand(tokens, 1, generator=generator) * 9


@pytest.mark.parametrize(("rows", "cols", "tokens", "codec", "group"), CASES)
def test_integers_are_exact(codec: str, group: int, rows: int, cols: int, tokens: int) -> None:
    q_NK, x_q = random_case(codec, rows, cols, tokens)
    packed = reference.pack(q_NK, codec, group)
    expected = (x_q.double() @ q_NK.double().t()).to(torch.int32)
    assert torch.equal(expected, reference.matmul_i32(packed, codec, rows, cols, x_q, group))
    for isa, threads in each_isa_and_threads():
        poisoned = torch.full((tokens, rows), -7, dtype=torch.int32)
        got = kernels.matmul_i32(packed, codec, rows, cols, x_q, group, threads=threads, out=poisoned)
        assert torch.equal(got, expected), (isa, threads)


@pytest.mark.parametrize(
    ("rows", "cols", "tokens", "codec", "granularity", "group"),
    [(*shape, codec, granularity, 0) for shape in SHAPES for codec in TERNARY for granularity in ("tensor", "row")]
    + [(*case[:4], "group", case[4]) for case in CASES if case[4]],
)
def test_scaled_outputs_have_the_same_bits(
    codec: str, granularity: str, group: int, rows: int, cols: int, tokens: int
) -> None:
    q_NK, _ = random_case(codec, rows, cols, tokens)
    packed = reference.pack(q_NK, codec, group)
    scale = random_scales(codec, granularity, rows, cols, group)
    arguments = (packed, scale, codec, rows, cols, group, granularity, random_inputs(tokens, cols))
    plain, bias = reference.linear(*arguments), torch.linspace(-1, 1, rows)
    for isa, threads in each_isa_and_threads():
        for added, expected in ((None, plain), (bias, plain + bias)):
            poisoned = torch.full((tokens, rows), float("nan"))
            got = kernels.linear(*arguments, bias=added, threads=threads, out=poisoned)
            assert torch.equal(got, expected), (isa, threads)


@pytest.mark.parametrize(("codec", "group"), ZEROS)
@pytest.mark.parametrize(("rows", "cols", "tokens"), FEW_SHAPES)
def test_outputs_with_zero_points_have_the_same_bits(codec: str, group: int, rows: int, cols: int, tokens: int) -> None:
    q_NK, _ = random_case(codec, rows, cols, tokens)
    packed, zero = reference.pack(q_NK, codec, group), random_zeros(codec, rows, cols, group)
    scale = random_scales(codec, "group", rows, cols, group)
    arguments = (packed, scale, codec, rows, cols, group, "group", random_inputs(tokens, cols))
    bias = torch.linspace(-1, 1, rows)
    expected = reference.linear(*arguments, zero=zero, bias=bias)
    for isa, threads in each_isa_and_threads():
        poisoned = torch.full((tokens, rows), float("nan"))
        got = kernels.linear(*arguments, zero=zero, bias=bias, threads=threads, out=poisoned)
        assert torch.equal(got, expected), (isa, threads)


@pytest.mark.parametrize(
    ("codec", "group"), [("2bit", 0), ("base3", 60), ("int4", 32), ("int8", 64), ("int3", 32), ("uint8", 64)]
)
def test_a_row_depends_on_its_own_token_only(isa: str, codec: str, group: int) -> None:
    q_NK, _ = random_case(codec, 100, 200, 1)
    packed = reference.pack(q_NK, codec, group)
    granularity = "group" if group else "row"
    scale = random_scales(codec, granularity, 100, 200, group)
    x, zero = random_inputs(11, 200), random_zeros(codec, 100, 200, group) if (codec, group) in ZEROS else None
    together = kernels.linear(packed, scale, codec, 100, 200, group, granularity, x, zero=zero)
    alone = [kernels.linear(packed, scale, codec, 100, 200, group, granularity, row[None], zero=zero) for row in x]
    assert torch.equal(together, torch.cat(alone))


EXTREMES = [("2bit", 0), ("base3", 0), *((name, 1024) for name in ALL if ALL[name].max_group)]


@pytest.mark.parametrize(("codec", "group"), EXTREMES)
@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("extreme", ["low", "high"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_extremes_do_not_overflow(isa: str, codec: str, group: int, value: int, extreme: str, tokens: int) -> None:
    weight = getattr(ALL[codec], extreme)
    q_NK = torch.full((70, 4111), weight, dtype=torch.int8)
    x_q = torch.full((tokens, 4111), value, dtype=torch.int8)
    got = kernels.matmul_i32(kernels.pack(q_NK, codec, group), codec, 70, 4111, x_q, group, threads=1)
    assert torch.equal(got, torch.full((tokens, 70), weight * value * 4111, dtype=torch.int32))


@pytest.mark.parametrize("codec", sorted(ALL))
def test_scale_groups_larger_than_the_matrix_and_of_one_k_group(isa: str, codec: str) -> None:
    for group in {max(16, ALL[codec].group_multiple), 32, 320}:
        q_NK, x_q = random_case(codec, 67, 100, 3)
        packed = reference.pack(q_NK, codec, group)
        got = kernels.matmul_i32(packed, codec, 67, 100, x_q, group)
        assert torch.equal(got, reference.matmul_i32(packed, codec, 67, 100, x_q, group))


STRIDED = [("2bit", 0), ("base3", 0), ("base3", 60), *((name, 32) for name in ALL if ALL[name].max_group)]


@pytest.mark.parametrize(("codec", "group"), STRIDED)
def test_rows_of_any_stride_and_weights_of_any_alignment(isa: str, codec: str, group: int) -> None:
    q_NK, _ = random_case(codec, 70, 100, 1)
    packed = reference.pack(q_NK, codec, group)
    moved = torch.empty(packed.numel() + 3, dtype=torch.uint8)[3:]
    moved.copy_(packed.flatten())
    wide = torch.randint(-128, 128, (5, 170), dtype=torch.int8)
    out = torch.full((5, 200), -7, dtype=torch.int32)
    kernels.matmul_i32(moved, codec, 70, 100, wide[:, 13:113], group, out=out[:, 60:130])
    assert torch.equal(out[:, 60:130], reference.matmul_i32(packed, codec, 70, 100, wide[:, 13:113], group))
    assert bool((out[:, :60] == -7).all())
    assert bool((out[:, 130:] == -7).all())
    granularity = "group" if group else "row"
    scale = random_scales(codec, granularity, 70, 100, group)
    floats, x = torch.full((5, 200), -7.0), random_inputs(5, 170)[:, 13:113]
    kernels.linear(moved, scale, codec, 70, 100, group, granularity, x, out=floats[:, 60:130])
    assert torch.equal(floats[:, 60:130], reference.linear(packed, scale, codec, 70, 100, group, granularity, x))
    assert bool((floats[:, :60] == -7).all())
    assert bool((floats[:, 130:] == -7).all())


@pytest.mark.parametrize(("codec", "group"), [("2bit", 0), ("base3", 60), ("int4", 32), ("int8", 32), ("int6", 32)])
def test_no_tokens_give_no_rows(isa: str, codec: str, group: int) -> None:
    packed = reference.pack(torch.zeros(3, 5, dtype=torch.int8), codec, group)
    assert kernels.matmul_i32(packed, codec, 3, 5, torch.empty((0, 5), dtype=torch.int8), group).shape == (0, 3)
    granularity = "group" if group else "tensor"
    scale = random_scales(codec, granularity, 3, 5, group)
    assert kernels.linear(packed, scale, codec, 3, 5, group, granularity, torch.empty(0, 5)).shape == (0, 3)


@pytest.mark.parametrize(("codec", "group"), [*((c, g) for c in TERNARY for g in (0, 16, 48)), *FORMATS[5:], *WIDENED])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 7), (64, 16), (65, 20), (130, 257)])
def test_packing_writes_the_codecs_bytes(codec: str, group: int, rows: int, cols: int) -> None:
    q_NK, _ = random_case(codec, rows, cols, 1)
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


@pytest.mark.parametrize(("codec", "group"), [("2bit", 0), ("int4", 4 * 8), ("int8", 4), ("bf16", 0), ("int2", 32)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_outputs_of_a_token_that_is_not_finite_are_not_either(isa: str, codec: str, group: int, bad: float) -> None:
    x = random_inputs(3, 40)
    x[1, 4] = bad
    if codec == "bf16":
        y = kernels.linear(torch.ones(7, 40, dtype=torch.bfloat16), None, codec, 7, 40, 0, "tensor", x)
    else:
        packed = kernels.pack(torch.ones(7, 40, dtype=torch.int8), codec, group)
        granularity = "group" if group else "tensor"
        y = kernels.linear(packed, random_scales(codec, granularity, 7, 40, group), codec, 7, 40, group, granularity, x)
    assert y.isfinite().all(1).tolist() == [True, False, True]
