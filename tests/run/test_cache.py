"""What is kept of keys and values is bounded in entries, tokens and bytes."""

import numpy as np
import pytest

from mote.kernels.abi import KV_TOKENS
from mote.run import cache
from mote.run.cache import Pool, Prefixes, Sequence


def decoded(pool: Pool, first: int, tokens: int) -> Sequence:
    """A sequence of its own `tokens`, whose keys and values would be there."""
    sequence = Sequence(pool)
    sequence.append(*range(first, first + tokens))
    sequence.reserve(tokens)
    sequence.advance(tokens)
    return sequence


def test_kept_prefixes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT_BYTES", 1000)
    for size, settings, kept in (
        (10, {}, 8),  # entries
        (10, {"tokens": 4 * KV_TOKENS}, 2),
        (200, {}, 2),  # bytes: 5 blocks of 200
        (2000, {}, 0),
    ):
        pool = Pool(size)
        prefixes = Prefixes(size, **settings)
        for number in range(12):
            sequence = decoded(pool, 1000 * number, 2 * KV_TOKENS)
            prefixes.keep(sequence)
            sequence.free()
        assert pool.in_use == 2 * kept
        newest = prefixes.longest(np.arange(11000, 11000 + 3 * KV_TOKENS))
        assert (newest is not None) == bool(kept)


def test_spare_blocks_are_bounded_in_bytes() -> None:
    pool = Pool(100, spare=350)
    sequence = decoded(pool, 0, 6 * KV_TOKENS)
    sequence.free()
    assert pool.in_use == 0
    assert len(pool._free) == 3
