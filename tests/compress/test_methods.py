"""The methods on matrices: the integers stand for what the library computed, and each beats rounding to nearest."""

import subprocess
import sys

import pytest
import torch

from mote.compress.methods import awq, gptq, hqq
from mote.compress.methods.libraries import library, version
from mote.errors import FormatError, RecipeError
from mote.ternary.format import WeightFormat
from mote.ternary.integers import dequantize_integers
from mote.ternary.round_to_nearest import nearest

ROWS, COLS, GROUP = 48, 80, 32  # two whole groups and a half one


def _format(bits, *, symmetric):
    return WeightFormat(
        quantizer=f"int{bits}",
        scale="given",
        granularity="group",
        group=GROUP,
        activation="int8_group",
        symmetric=symmetric,
    )


@pytest.fixture
def weight():
    return torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(0)) * 0.05


@pytest.fixture
def inputs():
    """Rows whose columns are alike and of very different size, as activations are."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(600, COLS, generator=generator) @ torch.randn(COLS, COLS, generator=generator)
    return mixed * torch.rand(COLS, generator=generator) ** 3


def _error(x, weight, other):
    return float((x @ (weight - other).t()).norm() / (x @ weight.t()).norm())


def _nearest(weight, fmt):
    return dequantize_integers(nearest(weight, fmt), fmt)


def _gptq(weight, x, fmt):
    seen = gptq.Inputs(weight.shape[1])
    for part in x.split(128):
        seen.add(part)
    assert seen.rows == len(x)
    return gptq.quantize(weight, seen, fmt)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_gptq_gives_the_librarys_weights_and_beats_rounding(bits, symmetric, weight, inputs):
    fmt = _format(bits, symmetric=symmetric)
    found = dequantize_integers(_gptq(weight, inputs, fmt), fmt)
    # The library by itself, with the same scales.
    low, high = (-127, 127) if (bits, symmetric) == (8, True) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    alone = library("gptq").GPTQ(torch.nn.Linear(COLS, ROWS), weight, "cpu")
    for part in inputs.split(128):
        alone.add_batch(part, None)
    alone.quantizer = gptq._quantizer(fmt, low=low, high=high)
    *_, expected = alone.fasterquant(weight.clone(), groupsize=GROUP, act_order=True, static_groups=True)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert _error(inputs, weight, found) < _error(inputs, weight, _nearest(weight, fmt))


def test_gptq_leaves_what_was_never_read_at_zero_and_survives_few_inputs(weight, inputs):
    fmt = _format(4, symmetric=True)
    inputs[:, 5] = 0
    found = dequantize_integers(_gptq(weight, inputs[:3], fmt), fmt)
    assert torch.isfinite(found).all()
    assert not found[:, 5].any()
    weight[3, 4] = float("nan")
    with pytest.raises(FormatError, match="NaN"):
        _gptq(weight, inputs, fmt)


def test_gptq_of_a_group_without_negative_weights_is_symmetric_too(inputs):
    fmt = _format(4, symmetric=True)
    weight = torch.rand(ROWS, COLS, generator=torch.Generator().manual_seed(2))
    found = dequantize_integers(_gptq(weight, inputs, fmt), fmt)
    assert float(found.max()) > 0.85


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_hqq_gives_the_librarys_zero_points_and_beats_rounding(bits, weight):
    fmt = _format(bits, symmetric=False)
    weight = weight * torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(3)).exp()  # heavy tails
    integers = hqq.quantize(weight, fmt)
    found = dequantize_integers(integers, fmt)
    handle = hqq._handle()
    settings = library("hqq", "config").QTensorConfig(nbits=bits, group_size=GROUP, round_zero=False, pack=False)
    grouped = weight[:, :64].reshape(-1, GROUP).t().contiguous()
    alone = handle.quantize(grouped, settings)
    torch.testing.assert_close(integers.scale[:, :2].reshape(1, -1), alone.scale, rtol=2**-8, atol=0)
    torch.testing.assert_close(integers.zero[:, :2].reshape(1, -1), alone.zero, rtol=2**-8, atol=1e-3)
    # Within what rounding scale and zero point to bf16 moves a weight by, and half a step.
    alone_weights = (alone.val.float() - alone.zero) * alone.scale
    steps = (found[:, :64].reshape(-1, GROUP).t() - alone_weights) / alone.scale
    assert float(steps.abs().max()) < 1.0 + 2**bits * 2**-8
    if bits < 8:
        assert float((weight - found).abs().mean()) < float((weight - _nearest(weight, fmt)).abs().mean())


def test_hqq_refuses_a_symmetric_grid_and_nonsense(weight):
    with pytest.raises(FormatError, match="asymmetric"):
        hqq.quantize(weight, _format(4, symmetric=True))
    weight[0, 0] = float("inf")
    with pytest.raises(FormatError, match="NaN or Inf"):
        hqq.quantize(weight, _format(4, symmetric=False))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_awq_moves_scales_between_up_and_down(bits, symmetric, weight):
    fmt = _format(bits, symmetric=symmetric)
    generator = torch.Generator().manual_seed(4)
    up, x = torch.randn(COLS, 24, generator=generator), torch.randn(400, 24, generator=generator)
    gate = torch.rand(400, COLS, generator=generator) * torch.rand(COLS, generator=generator) ** 4
    scaled_up, scaled_down = awq.balance(up, weight, gate * (x @ up.t()), fmt)
    assert not torch.equal(scaled_down, weight)
    before, after = (gate * (x @ u.t()) @ d.t() for u, d in ((up, weight), (scaled_up, scaled_down)))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    rounded = [gate * (x @ u.t()) @ _nearest(d, fmt).t() for u, d in ((up, weight), (scaled_up, scaled_down))]
    assert float((rounded[1] - before).norm()) < float((rounded[0] - before).norm())


def test_awq_leaves_a_network_whose_weights_are_zero(weight):
    up, x = torch.randn(COLS, 24), torch.rand(10, COLS)
    weight[3, :GROUP] = 0
    found = awq.balance(up, weight, x, _format(4, symmetric=True))
    assert torch.equal(found[0], up)
    assert torch.equal(found[1], weight)


def test_awq_searches_at_the_width_that_was_asked_for(weight):
    """The library alone searches at 4 bits whatever it is told; should that change, `_width` can go."""
    utility = library("awq", "utility")
    with awq._width(2):
        two = utility.quant_tensor(weight.clone(), num_bits=2, group_size=GROUP, scheme="sym")
    assert len(two[:, :GROUP][0].unique()) <= 4
    alone = utility.quant_tensor(weight.clone(), num_bits=2, group_size=GROUP, scheme="sym")
    assert len(alone[:, :GROUP][0].unique()) > 4


def test_awq_keeps_a_share_of_the_inputs():
    seen = awq.Inputs(0.25)
    for size in (3, 5, 0, 92):
        seen.add(torch.full((size, 4), float(size)))
    assert (seen.rows, len(seen.sample())) == (100, 25)
    assert awq.Inputs(0.0).sample() is None
    whole = awq.Inputs(1.0)
    whole.add(torch.arange(12.0).view(3, 4))
    assert torch.equal(whole.sample(), torch.arange(12.0).view(3, 4))


def test_gptq_sums_the_products_of_its_inputs(monkeypatch):
    monkeypatch.setattr(gptq, "BLOCK", GROUP)
    x_RK = torch.randn(70, COLS)
    seen = gptq.Inputs(COLS)
    for part in x_RK.split(20):
        seen.add(part)
    torch.testing.assert_close(seen.hessian(), 2 / 70 * x_RK.T @ x_RK)
    assert seen.rows == 70


def test_a_library_leaves_nothing_behind(tmp_path):
    code = "from mote.compress.methods.libraries import METHODS, library; [library(name) for name in METHODS]"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())


def test_a_library_may_be_imported_before_transformers(tmp_path):
    code = """
import torch
from mote.compress.methods.libraries import version
version("gptq")
import transformers
from mote.compress.methods import gptq
from mote.compress.quantize_config import QuantizeConfig
seen = gptq.Inputs(64)
seen.add(torch.randn(80, 64))
config = QuantizeConfig(shared="int4", method="gptq", group=32, symmetric=False)
gptq.quantize(torch.randn(8, 64), seen, config.contract(None, "x").shared)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_a_missing_library_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("mote.compress.methods.libraries.import_module", missing)
    for method in ("hqq", "gptq", "awq"):
        with pytest.raises(RecipeError, match=r"pip install .mote-lmm\[quantize\]"):
            library(method)
        with pytest.raises(RecipeError, match="cannot be imported"):
            version(method)
    assert version("rtn") == ""
    monkeypatch.undo()
    assert version("gptq").startswith("neural-compressor 3")
