"""The cache of quantised weights: kept while the parameter stands still, renewed whenever it moves."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch

from mote.ternary.cache import QuantizedCache
from mote.ternary.format import WeightFormat
from mote.ternary.quantize import dequantize_weight, quantize_weight

TENSOR, ROW = WeightFormat(), WeightFormat(granularity="row")


def parameter(seed: int = 0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(seed)))


def test_quantises_once_while_nothing_changes() -> None:
    w, cache = parameter(), QuantizedCache()
    first = cache.get(w, TENSOR)
    assert cache.get(w, TENSOR) is first
    assert torch.equal(first.q, quantize_weight(w, TENSOR).q)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("variant", [{}, {"foreach": True}, {"fused": True}])
def test_every_kind_of_optimiser_step_is_seen(
    optimizer: Callable[..., torch.optim.Optimizer], variant: dict[str, bool]
) -> None:
    """Fused steps do not advance the version counter of what they write."""
    w, cache = parameter(), QuantizedCache()
    cache.get(w, TENSOR)
    w.grad = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
    optimizer([w], lr=0.5, **variant).step()
    fresh = quantize_weight(w, TENSOR)
    assert torch.equal(cache.get(w, TENSOR).q, fresh.q)
    assert torch.equal(cache.get(w, TENSOR).scale, fresh.scale)


def test_writes_formats_dtypes_and_other_parameters_are_seen() -> None:
    w, cache = parameter(), QuantizedCache()
    cache.get(w, TENSOR)
    with torch.no_grad():
        w.copy_(parameter(2))
    assert torch.equal(cache.get(w, TENSOR).scale, quantize_weight(w, TENSOR).scale)
    assert cache.get(w, ROW).scale.shape == (2, 6)
    other = parameter(3)
    assert torch.equal(cache.get(other, ROW).scale, quantize_weight(other, ROW).scale)
    other.data = parameter(4).data.to(torch.bfloat16)
    assert torch.equal(cache.get(other, ROW).scale, quantize_weight(other, ROW).scale)


def test_clear_covers_writes_through_data() -> None:
    w, cache = parameter(), QuantizedCache()
    cache.get(w, TENSOR)
    w.data.copy_(parameter(5))
    cache.clear()
    assert torch.equal(cache.get(w, TENSOR).scale, quantize_weight(w, TENSOR).scale)


def test_dense_weights_are_kept_and_renewed_with_the_integers() -> None:
    w, cache = parameter(), QuantizedCache()
    dense = cache.get_dense(w, ROW, torch.bfloat16)
    assert cache.get_dense(w, ROW, torch.bfloat16) is dense
    assert cache.get_dense(w, ROW, torch.float32).dtype == torch.float32
    with torch.no_grad():
        w.neg_()
    assert torch.equal(cache.get_dense(w, ROW, torch.bfloat16), -dense)
    assert torch.equal(dense, dequantize_weight(*quantize_weight(-w, ROW), ROW, torch.bfloat16))


def test_a_parameter_that_died_is_not_mistaken_for_a_new_one() -> None:
    cache = QuantizedCache()
    for seed in range(20):  # the allocator hands the same address out again, and versions start at 0
        w = parameter(seed)
        assert torch.equal(cache.get(w, TENSOR).scale, quantize_weight(w, TENSOR).scale)
        del w


def test_copies_and_pickles_are_empty_and_work() -> None:
    w, cache = parameter(), QuantizedCache()
    cache.get(w, TENSOR)
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert torch.equal(twin.get(w, TENSOR).q, cache.get(w, TENSOR).q)
        assert twin.get(w, TENSOR) is not cache.get(w, TENSOR)
