"""A whole feed-forward layer in one native call against the plain reference, and against itself.

Between ISAs, numbers of threads and batches the bits are equal. The reference's exponentials and float sums are torch's
and differ in a last bit; where that turns an int8 rounding of silu(gate h) * (up h), outputs move by a step of 127.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mote import kernels
from mote.errors import NativeError
from mote.kernels import FeedForward, StoredMatrix, SwiGlu, reference
from mote.ternary.codecs import CODECS, scales_to_strips

LAST_BITS = 2e-6
"""Distance of a token's output from the reference's, relative to its length."""
ONE_STEP = 2 / 127
"""The same for a token of which an int8 rounding turned."""

Format = tuple[str, str, int]
"""(codec, granularity, inputs per scale group)"""
FORMATS: dict[str, Format] = {
    "2bit": ("2bit", "tensor", 0),
    "2bit rows": ("2bit", "row", 0),
    "2bit groups": ("2bit", "group", 48),
    "base3": ("base3", "tensor", 0),
    "base3 rows": ("base3", "row", 0),
    "base3 groups": ("base3", "group", 60),
    "int4": ("int4", "group", 32),
    "int8": ("int8", "group", 40),
    "int2": ("int2", "group", 16),
    "int3": ("int3", "group", 32),
    "int6": ("int6", "group", 64),
    "uint8": ("uint8", "group", 32),
    "bf16": ("bf16", "tensor", 0),
    "f32": ("f32", "tensor", 0),
}
# routed format, shared format, (H, F, E), settings
CASES: list[tuple[str, str | None, tuple[int, int, int], dict[str, Any]]] = [
    ("2bit", "f32", (37, 53, 4), {}),
    ("base3", "bf16", (72, 130, 5), {"top_k": 2, "renormalize": True}),
    ("2bit rows", "int4", (96, 65, 3), {"combine": "convex"}),
    ("base3 rows", "int8", (80, 121, 4), {"top_k": 2, "combine": "convex"}),
    ("2bit groups", "base3", (130, 97, 2), {"top_k": 2, "combine": "convex", "renormalize": True}),
    ("base3 groups", None, (61, 127, 6), {"top_k": 2}),
    ("bf16", None, (45, 77, 4), {"top_k": 2, "renormalize": True}),
    ("int4", "2bit groups", (67, 99, 1), {}),
    ("base3", "f32", (1, 1, 1), {"renormalize": True}),
    ("int3", None, (70, 130, 4), {"top_k": 2, "renormalize": True}),  # MoE-LLaVA, quantised
    ("int2", "int6", (64, 99, 3), {"top_k": 2}),
    ("uint8", "int3", (40, 65, 2), {}),
    ("base3", "int4", (200, 333, 4), {}),  # enough work that other threads join in
]


@pytest.fixture(autouse=True)
def _isa_of_the_start() -> Iterator[None]:
    yield
    kernels.select_isa(None)


def stored(rows: int, cols: int, fmt: Format, generator: torch.Generator) -> StoredMatrix:
    """Random weights that keep the size of what they multiply."""
    codec, granularity, group = fmt
    if codec in ("bf16", "f32"):
        w = torch.randn(rows, cols, generator=generator) / math.sqrt(cols)
        return StoredMatrix(w.to(reference.DENSE[codec]), None, codec, rows, cols)
    low, high = CODECS[codec].low, CODECS[codec].high
    q = torch.randint(low, high + 1, (rows, cols), dtype=torch.int8, generator=generator)
    shape = {"tensor": (), "row": (rows,), "group": (rows, -(-cols // (group or cols)))}[granularity]
    scale = (torch.rand(shape, generator=generator) + 0.5) / (high * math.sqrt(cols))
    packed = kernels.pack(q, codec, group)
    if not CODECS[codec].max_group:
        return StoredMatrix(packed, scale, codec, rows, cols, group, granularity)  # type: ignore[arg-type]
    zero = None
    if codec in ("int3", "uint8"):
        zero = scales_to_strips(CODECS[codec].offset + torch.randn(shape, generator=generator))
    return StoredMatrix(packed, scales_to_strips(scale), codec, rows, cols, group, "group", zero)


def layer_of(routed: str, shared: str | None, sizes: tuple[int, int, int], **settings: Any) -> FeedForward:
    hidden, width, num_experts = sizes
    generator = torch.Generator().manual_seed(sum(sizes))

    def expert(name: str) -> SwiGlu:
        shapes = ((width, hidden), (width, hidden), (hidden, width))
        return SwiGlu(*(stored(*shape, FORMATS[name], generator) for shape in shapes))

    return FeedForward(
        experts=tuple(expert(routed) for _ in range(num_experts)),
        router=torch.randn(num_experts, hidden, generator=generator) / math.sqrt(hidden) if num_experts else None,
        shared=expert(shared) if shared else None,
        **settings,
    )


def tokens_of(layer: FeedForward, tokens: int) -> Tensor:
    return 3 * torch.randn(tokens, layer.hidden, generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize(("routed", "shared", "sizes", "settings"), CASES)
@pytest.mark.parametrize("tokens", [1, 70])
def test_a_layer_is_its_reference(
    routed: str, shared: str | None, sizes: tuple[int, int, int], settings: dict[str, Any], tokens: int
) -> None:
    layer = layer_of(routed, shared, sizes, **settings)
    h = tokens_of(layer, tokens)
    expected, outputs = reference.ffn(layer, h), []
    for isa in kernels.info()["isas"]:
        kernels.select_isa(isa)
        for threads in (1, 3):
            poisoned = torch.full((tokens, layer.hidden), float("nan"))
            outputs.append(kernels.ffn(layer, h, threads=threads, out=poisoned))
    for got in outputs:
        assert all(torch.equal(mine, first) for mine, first in zip(got, outputs[0], strict=True))
    y_TH, expert_Tk, gate_Tk = outputs[0]
    assert torch.equal(expert_Tk, expected.expert_Tk)
    torch.testing.assert_close(gate_Tk, expected.gate_Tk, rtol=1e-5, atol=0)
    distance_T = (y_TH - expected.y_TH).norm(dim=1) / expected.y_TH.norm(dim=1)
    assert distance_T.max() < ONE_STEP
    assert (distance_T < LAST_BITS).float().mean() >= (0.9 if tokens > 1 else 0)


@pytest.mark.parametrize("shared", ["base3 groups", "int4", "f32"])
def test_a_dense_layer_has_no_routes(shared: str) -> None:
    layer = layer_of("2bit", shared, (70, 90, 0))
    h = tokens_of(layer, 5)
    mixed = kernels.ffn(layer, h)
    assert mixed.expert_Tk.shape == mixed.gate_Tk.shape == (5, 0)
    torch.testing.assert_close(mixed.y_TH, reference.ffn(layer, h).y_TH, rtol=1e-2, atol=1e-2)


def test_a_token_depends_on_itself_only_at_any_stride() -> None:
    layer = layer_of("base3", "int4", (67, 99, 4), top_k=2)
    wide, out = tokens_of(layer, 11).repeat(1, 2), torch.full((11, 100), -7.0)
    together = kernels.ffn(layer, wide[:, 67:], out=out[:, 20:87])
    alone = [kernels.ffn(layer, row[None, 67:]) for row in wide]
    for mine, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(mine, torch.cat(parts))
    assert bool((out[:, :20] == -7).all())
    assert bool((out[:, 87:] == -7).all())
    assert kernels.ffn(layer, wide[:0, 67:]).y_TH.shape == (0, 67)


def test_ties_go_to_the_lowest_index() -> None:
    layer = layer_of("2bit", None, (32, 40, 6), top_k=3)
    assert layer.router is not None
    layer.router[:] = 0
    mixed = kernels.ffn(layer, tokens_of(layer, 9))
    assert mixed.expert_Tk.tolist() == [[0, 1, 2]] * 9
    torch.testing.assert_close(mixed.gate_Tk, torch.full((9, 3), 1 / 6))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_token_that_is_not_finite_stays_alone(bad: float) -> None:
    layer = layer_of("base3", "f32", (40, 50, 3), top_k=2)
    h = tokens_of(layer, 3)
    h[1, 4] = bad
    mixed = kernels.ffn(layer, h)
    assert mixed.y_TH.isfinite().all(1).tolist() == [True, False, True]
    assert set(mixed.expert_Tk.flatten().tolist()) <= {0, 1, 2}


def test_a_layer_keeps_its_tensors_and_a_copy_finds_its_own() -> None:
    layer = layer_of("base3 rows", "int8", (80, 121, 4))  # nothing else holds them
    h = tokens_of(layer, 4)
    expected = kernels.ffn(layer, h).y_TH
    again = copy.deepcopy(layer)
    assert again.native.router != layer.native.router
    del layer
    assert torch.equal(kernels.ffn(again, h).y_TH, expected)


def test_what_does_not_fit_is_refused() -> None:
    layer = layer_of("2bit", "int4", (64, 96, 3))
    assert layer.router is not None
    assert layer.shared is not None
    h = tokens_of(layer, 2)
    up = layer.shared.up
    narrow = layer.shared._replace(up=up._replace(packed=up.packed[:1], scale=up.scale[:1], rows=64))  # type: ignore[index]
    changes: list[tuple[dict[str, Any], str]] = [
        ({"top_k": 4}, "top_k=4 of 3"),
        ({"top_k": 0}, "top_k=0 of 3"),
        ({"combine": "gated"}, "'gated' is unknown"),
        ({"combine": "convex", "shared": None}, "needs a shared expert"),
        ({"router": None}, "the router is None"),
        ({"router": layer.router[:, 1:]}, r"takes? \[3, 64\]"),
        ({"router": layer.router.double()}, "router is torch.float64"),
        ({"experts": (), "shared": None}, "shared expert, routed ones"),
        ({"shared": narrow}, r"matrices of a shared expert are not \[F, H\]"),
        ({"shared": layer.shared._replace(up=up._replace(scale=None))}, "0 weight scales where"),
        ({"shared": layer.shared._replace(up=up._replace(rows=900))}, "takes 30720"),
    ]
    for change, message in changes:
        with pytest.raises(NativeError, match=message):
            kernels.ffn(replace(layer, **change), h)
    calls: list[tuple[Tensor, dict[str, Any], str]] = [
        (h[:, 1:], {}, r"takes \[tokens, 64\]"),
        (h[0], {}, "2 dimensions"),
        (h.double(), {}, "h is torch.float64"),
        (h, {"threads": 0}, "0 threads"),
        (h, {"out": torch.empty(2, 63)}, "out is"),
    ]
    for bad, options, message in calls:
        with pytest.raises(NativeError, match=message):
            kernels.ffn(layer, bad, **options)
