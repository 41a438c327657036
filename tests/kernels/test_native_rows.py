"""Row-major bf16 and f32 weights, and rows looked up in matrices of every format that has them."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mote import kernels
from mote.errors import NativeError
from mote.kernels import reference
from mote.ternary.codecs import CODECS, scales_to_strips

SHAPES = [(1, 1, 1), (3, 7, 2), (65, 33, 5), (63, 401, 7), (130, 257, 3), (576, 1536, 2), (896, 4864, 1)]
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


@pytest.fixture(params=kernels.info()["isas"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    kernels.select_isa(request.param)
    yield request.param
    kernels.select_isa(None)


def random_case(codec: str, rows: int, cols: int, tokens: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + cols + tokens)
    w = torch.randn(rows, cols, generator=generator).to(DTYPES[codec])
    return w, torch.randn(tokens, cols, generator=generator)


def in_the_stated_order(w: Tensor, x: Tensor) -> Tensor:
    """Sixteen running sums of fused multiply-adds, folded: fp64 holds a product of two floats, and one sum, exactly
    enough for fp32 operands of few bits, which is what the callers give."""
    rows, cols = w.shape
    padded = -(-cols // 16) * 16
    terms = torch.zeros(x.shape[0], rows, padded, dtype=torch.float64)
    terms[..., :cols] = x.double()[:, None, :] * w.double()[None]
    sums = torch.zeros(x.shape[0], rows, 16, dtype=torch.float32)
    for step in terms.view(x.shape[0], rows, -1, 16).unbind(2):
        sums = (sums.double() + step).float()
    for half in (8, 4, 2, 1):
        sums = sums[..., :half] + sums[..., half : 2 * half]
    return sums[..., 0]


@pytest.mark.parametrize("codec", DTYPES)
@pytest.mark.parametrize(("rows", "cols", "tokens"), SHAPES)
def test_dense_products_agree_with_fp64(isa: str, codec: str, rows: int, cols: int, tokens: int) -> None:
    w, x = random_case(codec, rows, cols, tokens)
    bias = torch.linspace(-1, 1, rows)
    expected = reference.linear(w, None, codec, rows, cols, 0, "tensor", x, bias=bias)
    first = kernels.linear(w, None, codec, rows, cols, 0, "tensor", x, bias=bias, threads=1)
    bound = (x.double().abs() @ w.double().abs().t() + 1) * (cols / 16 + 8) * 2.0**-24
    assert bool(((first.double() - expected.double()).abs() <= bound).all())
    for threads in (2, 5):
        poisoned = torch.full((tokens, rows), float("nan"))
        got = kernels.linear(w, None, codec, rows, cols, 0, "tensor", x, bias=bias, threads=threads, out=poisoned)
        assert torch.equal(got, first)


@pytest.mark.parametrize("codec", DTYPES)
@pytest.mark.parametrize(("rows", "cols", "tokens"), [(3, 7, 2), (5, 16, 1), (70, 131, 5), (64, 576, 3)])
def test_dense_products_add_in_the_stated_order(isa: str, codec: str, rows: int, cols: int, tokens: int) -> None:
    w, x = random_case("bf16", rows, cols, tokens)
    w, x = w.to(DTYPES[codec]), x.to(torch.bfloat16).float()
    got = kernels.linear(w, None, codec, rows, cols, 0, "tensor", x)
    assert torch.equal(got, in_the_stated_order(w, x))


@pytest.mark.parametrize("codec", DTYPES)
def test_dense_rows_depend_on_their_own_token_only(isa: str, codec: str) -> None:
    w, x = random_case(codec, 100, 333, 11)
    together = kernels.linear(w, None, codec, 100, 333, 0, "tensor", x)
    alone = [kernels.linear(w, None, codec, 100, 333, 0, "tensor", row[None]) for row in x]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("codec", DTYPES)
def test_rows_of_dense_matrices(codec: str) -> None:
    w, _ = random_case(codec, 33, 21, 1)
    index = torch.tensor([32, 0, 7, 7])
    assert torch.equal(kernels.rows(w, None, codec, 33, 21, 0, index), w[index].float())


@pytest.mark.parametrize(
    ("codec", "group"),
    [("int4", 8), ("int4", 64), ("int8", 4), ("int8", 40), ("int2", 16), ("int3", 32), ("int6", 48), ("uint8", 64)],
)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (64, 64), (130, 257), (71, 576)])
def test_rows_of_scaled_matrices(codec: str, group: int, rows: int, cols: int) -> None:
    generator = torch.Generator().manual_seed(rows + cols)
    q_NK = torch.randint(CODECS[codec].low, CODECS[codec].high + 1, (rows, cols), dtype=torch.int8, generator=generator)
    scale_NG = torch.rand(rows, -(-cols // group), generator=generator).to(torch.bfloat16)
    packed, scale = kernels.pack(q_NK, codec, group), scales_to_strips(scale_NG)
    index = torch.tensor([rows - 1, 0, rows // 2])
    expected = (q_NK.float() * scale_NG.float().repeat_interleave(group, 1)[:, :cols])[index]
    assert torch.equal(kernels.rows(packed, scale, codec, rows, cols, group, index), expected)
    assert torch.equal(reference.rows(packed, scale, codec, rows, cols, group, index), expected)
    if codec == "int8":
        return
    zero_NG = (torch.randn(scale_NG.shape, generator=generator) + CODECS[codec].offset).to(torch.bfloat16)
    zero = scales_to_strips(zero_NG)
    wide = [t.float().repeat_interleave(group, 1)[:, :cols] for t in (scale_NG, zero_NG)]
    expected = ((q_NK.float() + CODECS[codec].offset - wide[1]) * wide[0])[index]
    for rows_of in (kernels.rows, reference.rows):
        assert torch.equal(rows_of(packed, scale, codec, rows, cols, group, index, zero=zero), expected)


def test_rows_that_do_not_exist_are_refused() -> None:
    w = torch.ones(5, 3, dtype=torch.bfloat16)
    for row in (-1, 5, 2**40):
        with pytest.raises(NativeError, match=rf"row {row} does not exist; the matrix has 5"):
            kernels.rows(w, None, "bf16", 5, 3, 0, torch.tensor([0, row]))
    assert kernels.rows(w, None, "bf16", 5, 3, 0, torch.empty(0, dtype=torch.int64)).shape == (0, 3)
    packed = kernels.pack(torch.zeros(5, 3, dtype=torch.int8), "2bit")
    with pytest.raises(NativeError, match="ternary"):
        kernels.rows(packed, torch.ones(()), "2bit", 5, 3, 0, torch.tensor([0]))
