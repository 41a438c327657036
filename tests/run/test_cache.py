"""What is kept of keys and values is bounded in entries, tokens and bytes."""

import numpy as np
import pytest

from mote.kernels.abi import KV_TOKENS
from mote.run import cache
from mote.run.cache import FEWEST, Pool, Prefixes, Sequence


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


def test_a_prompt_that_is_too_long_to_keep_leaves_the_others() -> None:
    pool = Pool(10)
    prefixes = Prefixes(10, tokens=4 * KV_TOKENS)
    prefixes.keep(decoded(pool, 0, 2 * KV_TOKENS))
    prefixes.keep(decoded(pool, 1000, 5 * KV_TOKENS))
    assert prefixes.longest(np.arange(3 * KV_TOKENS)) is not None
    assert prefixes.longest(np.arange(1000, 1000 + 6 * KV_TOKENS)) is None


def test_a_few_tokens_in_common_are_enough() -> None:
    pool = Pool(10)
    prefixes = Prefixes(10)
    prefixes.keep(decoded(pool, 0, FEWEST - 1))
    assert pool.in_use == 1
    prefixes.keep(decoded(pool, 0, FEWEST))
    found = prefixes.longest(np.arange(FEWEST + 1))
    assert found is not None
    assert found.length == FEWEST
    assert prefixes.longest(np.arange(FEWEST)) is None  # of the last token logits are wanted


def test_kept_tokens_are_counted_in_whole_blocks() -> None:
    pool = Pool(10)
    prefixes = Prefixes(10, entries=100, tokens=4 * KV_TOKENS)
    for number in range(6):
        sequence = decoded(pool, 1000 * number, FEWEST)
        prefixes.keep(sequence)
        sequence.free()
    assert pool.in_use == 4


def test_spare_blocks_are_bounded_in_bytes() -> None:
    pool = Pool(100, spare=350)
    sequence = decoded(pool, 0, 6 * KV_TOKENS)
    sequence.free()
    assert pool.in_use == 0
    assert len(pool._free) == 3
