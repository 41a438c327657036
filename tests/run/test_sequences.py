"""Sequences: the same bits alone, in company, in pieces, after a fork and for any number of threads; what is decoded
once, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mote
from mote.checkpoint.shards import Checkpoint
from mote.errors import EngineError
from mote.kernels import decoder as native
from mote.kernels.abi import KV_TOKENS
from mote.model.opening import open_config
from mote.run.decoding import Decoding
from mote.run.picture import Picture
from mote.run.weights import Weights

IDS = torch.randint(3, 90, (90,), generator=torch.Generator().manual_seed(0)).tolist()
PACKINGS: dict[str, dict[str, Any]] = {
    "floats": {},
    "int4 shared, int8 attention, int4 head": {"shared": "int4", "attention": "int8", "head": "int4", "group": 32},
}


def decoding(root: Path, kv: str = "f32", **options: Any) -> Decoding:
    checkpoint = Checkpoint.open(root)
    options = {"positions": 2048, "threads": 1, **options}
    return Decoding(Weights(checkpoint, open_config(checkpoint), kv=kv), **options)


def all_logits(engine: Decoding, ids: list[int]) -> np.ndarray:
    sequence = engine.sequence()
    sequence.append(*ids)
    logits = engine.forward([sequence], [len(ids)])[0]
    engine.free(sequence)
    return logits


@pytest.mark.parametrize("kv", ["bf16", "f32"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_bits_do_not_depend_on_company_cut_threads_or_forks(
    packing: str, kv: str, checkpoints: Any, tmp_path: Path
) -> None:
    packed = mote.pack(checkpoints("llava", initialise="random")[1], tmp_path / "again", **PACKINGS[packing])
    expected = all_logits(decoding(packed, kv), IDS)
    for threads in (2, 3):
        assert np.array_equal(all_logits(decoding(packed, kv, threads=threads), IDS), expected)
    for chunk in (1, 7, KV_TOKENS, 89):
        assert np.array_equal(all_logits(decoding(packed, kv, chunk=chunk), IDS), expected)
    engine = decoding(packed, kv)
    sequences = [engine.sequence() for _ in range(3)]
    for sequence, start in zip(sequences, (0, 3, 40), strict=True):
        engine.add(sequence, [*IDS[start:], *IDS[:start]])
    lengths = [sequence.num_waiting for sequence in sequences]
    batched = engine.forward(sequences, lengths)
    assert np.array_equal(batched[0], expected)
    for cut in (KV_TOKENS, KV_TOKENS + 5):
        forked = sequences[0].fork(cut)
        for place, token in enumerate(IDS[cut : cut + 6]):
            forked.append(token)
            sequences[1].append(token)  # the company goes on from elsewhere
            assert np.array_equal(engine.step([sequences[1], forked])[1], expected[cut + place])
        engine.free(forked)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_token_whose_products_are_split_between_threads(packing: str, tiny: Any, tmp_path: Path) -> None:
    """csrc/linear.cpp leaves products of few multiplications to the calling thread: below 2^21 ternary ones, or fewer
    that take longer. Here one token's queries, experts and head are above that."""
    sizes = {"hidden_size": 512, "intermediate_size": 3072, "head_dim": 64, "vocab_size": 2560, "num_hidden_layers": 1}
    model = tiny("llama", **sizes, num_attention_heads=8, num_key_value_heads=8)
    model = mote.upcycle(model, num_experts=3, top_k=2, initialise="random")
    mote.pack(model, **PACKINGS[packing]).save_pretrained(tmp_path / "m")
    ids = IDS[: KV_TOKENS + 4]
    expected = all_logits(decoding(tmp_path / "m", "bf16"), ids)
    for threads in (1, 2, 3):
        engine = decoding(tmp_path / "m", "bf16", threads=threads)
        first, second = engine.sequence(), engine.sequence()
        first.append(*ids[:-2])
        second.append(*ids[::-1])
        assert np.array_equal(engine.forward([second, first], [1, len(ids) - 2])[1], expected[:-2])
        first.append(ids[-2])
        assert np.array_equal(engine.step([first])[0], expected[-2])
        first.append(ids[-1])
        second.append(5)
        assert np.array_equal(engine.step([second, first])[1], expected[-1])
        engine.chunk = 5
        assert np.array_equal(all_logits(engine, ids), expected)


def test_both_sides_of_a_fork_go_on(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llama")[2])
    first = engine.sequence()
    engine.prefill(first, IDS[:40])
    second = engine.fork(first)
    first.append(5)
    second.append(6)
    engine.step([first, second])
    for sequence, token in ((first, 5), (second, 6)):
        sequence.append(7)
        assert np.array_equal(engine.step([sequence])[0], all_logits(engine, [*IDS[:40], token, 7])[-1])


def test_blocks_come_back(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llama")[2])
    sequences = [engine.sequence() for _ in range(3)]
    for sequence in sequences:
        engine.prefill(sequence, IDS)
    sequences.append(engine.fork(sequences[0]))
    for sequence in sequences:
        engine.free(sequence)
        engine.free(sequence)
    assert engine.pool.in_use == -(-len(IDS) // KV_TOKENS)  # what the prefix cache keeps
    engine.prefixes.clear()
    assert engine.pool.in_use == 0
    with pytest.raises(EngineError, match="freed"):
        sequences[0].append(1)


def test_a_picture_is_told_from_another_and_not_decoded_twice(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llava")[2], image_token_id=98)
    generator = np.random.default_rng(0)
    cat, dog = (Picture(d * 64, generator.normal(size=(40, 36)).astype(np.float32)) for d in "ab")
    prompt = [1, *[98] * 40, 5, 6]
    logits = [engine.prefill(engine.sequence(), prompt, [picture]) for picture in (cat, dog)]
    assert not np.allclose(*logits)
    before = engine.decoded
    engine.prefill(engine.sequence(), [*prompt[:-1], 9], [cat])
    assert engine.decoded - before == 1
    with pytest.raises(EngineError, match="runs of"):
        engine.prefill(engine.sequence(), [1, *[98] * 39, 5], [cat])
    with pytest.raises(EngineError, match="runs of"):
        engine.prefill(engine.sequence(), prompt, [cat, dog])


def test_a_second_question_about_a_picture_decodes_the_question_only(checkpoints: Any) -> None:
    """As in the demo: three tokens before a picture of sixteen, together less than a block of the cache."""
    engine = decoding(checkpoints("llava")[2], image_token_id=98)
    picture = Picture("a" * 64, np.random.default_rng(0).normal(size=(16, 36)).astype(np.float32))
    prefix = [1, 5, 6, *[98] * 16]
    engine.prefill(engine.sequence(), [*prefix, 7, 8, 9, 2], [picture])
    decoded, reused = engine.decoded, engine.reused
    logits = engine.prefill(engine.sequence(), [*prefix, 10, 11, 2], [picture])
    assert (engine.decoded - decoded, engine.reused - reused) == (3, 19)
    engine.prefixes.clear()
    assert np.array_equal(engine.prefill(engine.sequence(), [*prefix, 10, 11, 2], [picture]), logits)


def test_logits_of_one_call_are_handed_on_as_they_are(checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, made, real = decoding(checkpoints("llama")[2], chunk=32), list[np.ndarray](), native.decode
    monkeypatch.setattr(native, "decode", lambda *args, **options: made.append(real(*args, **options)) or made[-1])
    sequences = [engine.sequence() for _ in range(3)]
    for token, sequence in enumerate(sequences):
        sequence.append(token)
    assert engine.step(sequences) is made[0]
    sequences[1].append(*IDS)  # several calls, the last of which has the logits
    assert engine.step(sequences[1:2]) is made[-1]
    for sequence in sequences:
        sequence.append(7, 8)
    for rows in engine.forward(sequences, [2, 0, 1]):
        assert np.shares_memory(rows, made[-1]) or not len(rows)


def test_a_fork_takes_decoded_tokens_only(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llama")[2])
    sequence = engine.sequence()
    engine.prefill(sequence, IDS[:40])
    sequence.append(5)
    assert [sequence.fork(tokens).length for tokens in (0, 1, 40, None)] == [0, 1, 40, 40]
    for tokens in (-1, 41):
        with pytest.raises(EngineError, match=f"fork of {tokens} tokens from a sequence of 40"):
            sequence.fork(tokens)


def test_a_prompt_that_is_refused_does_not_wait(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llama")[2], positions=50)
    sequence = engine.sequence()
    with pytest.raises(EngineError, match="90 tokens, and the model has 50 positions"):
        engine.prefill(sequence, IDS)
    assert (sequence.length, sequence.num_waiting) == (0, 0)
    logits = engine.prefill(sequence, IDS[:40])
    assert np.array_equal(logits, all_logits(decoding(engine.weights._checkpoint.root), IDS[:40])[-1])
    with pytest.raises(EngineError, match="51 tokens"):
        engine.prefill(sequence, IDS[40:51])
    assert (sequence.length, sequence.num_waiting) == (40, 0)


def test_image_tokens_without_a_picture_are_refused(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llava")[2], image_token_id=98)
    sequence = engine.sequence()
    for ids in ([1, 98, 98, 5], [98]):
        with pytest.raises(EngineError, match=r"pictures of \[\] embeddings for runs of"):
            engine.prefill(sequence, ids)
    sequence.append(1, 98, 5)  # as a benchmark does, whose tokens are drawn: a row of the embedding like any other
    assert engine.step([sequence]).shape == (1, 99)


def test_what_cannot_be_served_is_refused(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llama")[2], positions=50)
    with pytest.raises(EngineError, match="50 positions"):
        engine.prefill(engine.sequence(), IDS)
    with pytest.raises(EngineError, match="vocabulary"):
        engine.prefill(engine.sequence(), [3, 99])
    with pytest.raises(EngineError, match="append some"):
        engine.step([engine.sequence()])
    sequence = engine.sequence()
    sequence.append(3)
    with pytest.raises(EngineError, match="twice"):
        engine.step([sequence, sequence])
