"""Streams, stop strings, sampling and log-probabilities on top of the engine."""

from typing import Any

import numpy as np
import pytest

import mote
from mote.data.conversation import Conversation, Turn
from mote.data.render import Renderer
from mote.errors import EngineError
from mote.run.engine import Engine
from mote.run.sampling import Sampler, Sampling, log_softmax

OPTIONS = {"text": {"initializer_range": 0.3}, "initialise": "random"}


@pytest.fixture
def engine(checkpoints: Any) -> Engine:
    loaded = mote.load(checkpoints("llava", **OPTIONS)[2], threads=1, kv="f32")
    assert isinstance(loaded, Engine)
    return loaded


def test_greedy_answer_with_logprobs_and_times(engine: Engine, picture: Any) -> None:
    heard: list[str] = []
    answer = engine.answer(picture, "What is this", stream=heard.append, max_new_tokens=6)
    assert "".join(heard).strip() == answer.text == engine.ask(picture, "What is this", max_new_tokens=6)
    assert len(answer.tokens) == 6
    assert answer.finish == "length"
    sequence = engine.sequence()
    prompt = engine.prompter.prompt(engine.prompter.question(picture, "What is this"), 4)
    logits = engine.prefill(sequence, prompt, [picture])
    for token, logprob in zip(answer.tokens, answer.logprobs, strict=True):
        assert token == logits.argmax()
        assert logprob == pytest.approx(log_softmax(logits)[token])
        sequence.append(token)
        logits = engine.step([sequence])[0]
    assert answer.prompt_tokens == len(prompt)
    assert set(answer.seconds) == {"tower_loading", "seeing", "prefill", "decode"}


def test_a_second_question_sees_the_picture_no_second_time(engine: Engine, picture: Any) -> None:
    """The prompt begins with two tokens and the picture's four; three words are the same in both questions."""
    first = engine.answer(picture, "What is this word3", max_new_tokens=1)
    seen, before = engine.sight.seconds, engine.decoded
    second = engine.answer(picture, "What is this word4 word5", max_new_tokens=1)
    assert engine.sight.seconds == seen
    assert second.reused_tokens == 9
    assert engine.decoded - before == second.prompt_tokens - second.reused_tokens
    assert first.reused_tokens == 0


def test_the_last_position_ends_an_answer(engine: Engine, picture: Any) -> None:
    whole = engine.answer(picture, "What is this", max_new_tokens=8)
    engine.positions = whole.prompt_tokens + 3
    answer = engine.answer(picture, "What is this", max_new_tokens=8)
    assert answer.finish == "length"
    assert answer.tokens == whole.tokens[:4]  # what follows the last position is known, and cannot be read
    engine.positions = whole.prompt_tokens
    assert engine.answer(picture, "What is this", max_new_tokens=8).tokens == whole.tokens[:1]
    engine.positions -= 1
    with pytest.raises(EngineError, match=f"a text of {whole.prompt_tokens} tokens"):
        engine.ask(picture, "What is this")


def test_a_question_is_rendered_once(engine: Engine, picture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.ask(picture, "What is this", max_new_tokens=1)  # with the token that ends a turn
    rendered: list[str] = []
    real = Renderer._pieces

    def pieces(renderer: Renderer, turns: Any, conversation: Any) -> Any:
        rendered.append(turns[-1].question)
        return real(renderer, turns, conversation)

    monkeypatch.setattr(Renderer, "_pieces", pieces)
    engine.ask(picture, "is this word4", max_new_tokens=1)
    assert rendered == ["is this word4"]


def test_prompt_and_answer_are_those_of_two_renderings(engine: Engine, picture: Any) -> None:
    prompter = engine.prompter
    first, second = (Turn(question=f"What is word{n}", answer=f"word{n} word9") for n in (3, 4))
    for conversation in (
        Conversation(id="two", image=picture, turns=(first, second)),
        Conversation(id="one", image=None, turns=(second,)),
    ):
        count = 4 if conversation.image else 0
        prompt, answer = prompter.both(conversation, count)
        assert prompt == prompter.prompt(conversation, count)
        assert prompter.text(answer) == "word4 word9"
        assert answer[-1] == 2
        assert prompter.ends(conversation, count) == {2}


def test_sampling_is_reproducible_and_follows_the_seed(engine: Engine, picture: Any) -> None:
    def draw(seed: int) -> tuple[int, ...]:
        sampling = Sampling(temperature=1.5, top_p=0.95, seed=seed)
        return engine.answer(picture, "What is this", max_new_tokens=12, sampling=sampling).tokens

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.9, seed=0))
    counts = np.bincount([sampler(logits) for _ in range(4000)], minlength=4)
    assert counts[3] == 0  # 0.5 + 0.3 + 0.15 reach 0.9 without it
    assert np.allclose(counts[:3] / 4000, np.array([0.5, 0.3, 0.15]) / 0.95, atol=0.03)
    assert {Sampler(Sampling(temperature=1.0, top_p=1e-9, seed=seed))(logits) for seed in range(9)} == {0}
    assert Sampler(Sampling())(np.array([1, 3, 3, 2], dtype=np.float32)) == 1
    with pytest.raises(EngineError, match="top_p"):
        Sampling(top_p=0.0)


def test_stop_strings_end_the_text_and_are_held_back(engine: Engine, picture: Any) -> None:
    whole = engine.answer(picture, "What is this", max_new_tokens=8)
    words = whole.text.split()
    stop = f"{words[2]} {words[3]}"
    assert whole.text.index(stop) == len(" ".join(words[:2])) + 1
    heard: list[str] = []
    answer = engine.answer(picture, "What is this", max_new_tokens=8, stop=[stop], stream=heard.append)
    assert answer.finish == "stop"
    assert answer.text == " ".join(words[:2]) == "".join(heard).strip()
    assert len(answer.tokens) == 4


def test_an_end_token_ends_without_text(engine: Engine, picture: Any) -> None:
    greedy = engine.answer(picture, "What is this", max_new_tokens=3)
    sequence = engine.sequence()
    prompt = engine.prompter.prompt(engine.prompter.question(picture, "What is this"), 4)
    logits = engine.prefill(sequence, prompt, [picture])
    tokens = list(engine.generate(sequence, logits, max_tokens=9, ends=[greedy.tokens[2]]))
    assert [token.id for token in tokens] == list(greedy.tokens[: len(tokens)])
    assert tokens[-1].finish == "end"
    assert [token.finish for token in tokens[:-1]] == [None] * (len(tokens) - 1)
    with pytest.raises(EngineError, match="max_tokens"):
        next(engine.generate(sequence, logits, max_tokens=0))
