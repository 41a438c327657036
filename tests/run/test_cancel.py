"""`Engine.cancel`: no cancellation is lost, and none outlives the question that it was meant for."""

import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mote
from mote.errors import CancelledError
from mote.kernels import decoder as native
from mote.run.engine import Engine

OPTIONS = {"text": {"initializer_range": 0.3}, "initialise": "random"}
IDS = [3 + place * 7 % 90 for place in range(90)]


@pytest.fixture
def engine(checkpoints: Any) -> Engine:
    loaded = mote.load(checkpoints("llava", **OPTIONS)[2], threads=1, kv="f32")
    assert isinstance(loaded, Engine)
    loaded.chunk = 32
    return loaded


@pytest.fixture
def cancel_in(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`cancel_in(n)`: another thread cancels in the native call n from now (0 is the next), past its last layer."""
    real = native.decode

    def arrange(number: int) -> None:
        calls = itertools.count()

        def decode(*args: Any, **options: Any) -> Any:
            logits = real(*args, **options)
            if next(calls) == number:
                thread = threading.Thread(target=engine.cancel)
                thread.start()
                thread.join()
            return logits

        monkeypatch.setattr(native, "decode", decode)

    return arrange


def test_a_generation_is_ended_from_another_thread(engine: Engine) -> None:
    heard, ended = threading.Event(), list[Exception]()

    def run() -> None:
        sequence = engine.sequence()
        try:
            for _ in engine.generate(sequence, engine.prefill(sequence, IDS), max_tokens=20_000, decode=None):
                heard.set()
        except CancelledError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert heard.wait(20)
    engine.cancel()
    thread.join(20)
    assert not thread.is_alive()
    assert len(ended) == 1


def test_what_comes_after_the_last_layer_ends_the_next_token(engine: Engine, picture: Any, cancel_in: Any) -> None:
    whole = engine.answer(picture, "What is this", max_new_tokens=6)
    assert len(whole.tokens) == 6
    heard: list[str] = []
    cancel_in(2)  # the prompt, then a call a token
    with pytest.raises(CancelledError):
        engine.ask(picture, "What is this", stream=heard.append, max_new_tokens=6)
    assert 0 < len("".join(heard)) < len(whole.text)
    assert engine.answer(picture, "What is this", max_new_tokens=6).tokens == whole.tokens


def test_what_comes_between_chunks_ends_the_prompt(engine: Engine, cancel_in: Any) -> None:
    expected = engine.prefill(engine.sequence(), IDS)
    engine.prefixes.clear()
    sequence = engine.sequence()
    cancel_in(1)
    with pytest.raises(CancelledError):
        engine.prefill(sequence, IDS)
    assert (sequence.length, sequence.num_waiting) == (64, 0)
    assert np.array_equal(engine.prefill(sequence, IDS[64:]), expected)


def test_what_comes_too_late_does_not_end_the_next_question(engine: Engine, picture: Any, cancel_in: Any) -> None:
    expected = engine.ask(picture, "What is this", max_new_tokens=3)
    cancel_in(2)  # the last token's
    assert engine.ask(picture, "What is this", max_new_tokens=3) == expected
    assert engine.ask(picture, "What is this", max_new_tokens=3) == expected


def test_a_cancelled_prompt_leaves_no_block_behind(engine: Engine) -> None:
    engine.prefill(engine.sequence(), IDS)
    engine.prefixes.clear()
    before = engine.pool.in_use
    sequence = engine.sequence()
    engine.cancel()
    with pytest.raises(CancelledError):
        engine.prefill(sequence, IDS)
    assert engine.pool.in_use == before
    engine.prefill(sequence, IDS)
    engine.free(sequence)
    engine.prefixes.clear()
    assert engine.pool.in_use == before


def test_a_cancelled_step_may_be_taken_again(engine: Engine) -> None:
    expected = engine.prefill(engine.sequence(), IDS)
    sequence = engine.sequence()
    sequence.append(*IDS)
    engine.cancel()
    with pytest.raises(CancelledError):
        engine.step([sequence])
    assert sequence.num_waiting == len(IDS)
    assert np.array_equal(engine.step([sequence])[0], expected)
