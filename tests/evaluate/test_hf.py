"""The fast ways through the model give what the plain ones give: one row, one forward pass, no sharing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mote.data.conversation import Conversation, Turn, read_conversations
from mote.data.images import open_image
from mote.data.render import Renderer
from mote.evaluate.hf import HFScorer
from mote.model.features import PictureFeatures
from mote.model.vision import vision_features


@pytest.fixture(scope="module")
def scorer(model: Any, processor: Any) -> HFScorer:
    """With features in fp32, where the cache has bf16, so that the comparison can be narrow."""

    def features(paths: Sequence[Path]) -> Tensor:
        pixels = processor.image_processor([open_image(path) for path in paths], return_tensors="pt")
        with torch.no_grad():
            return vision_features(model, pixels["pixel_values"])

    return HFScorer(model, processor, features, precision="fp32", batch_tokens=64)


@pytest.fixture(scope="module")
def questions(mix: Path) -> list[Conversation]:
    rows = read_conversations(mix / "test.jsonl")
    text_only = Conversation(
        id="x", image=None, turns=(Turn(question="the cat", answer="dog dog"), Turn(question="What ?", answer="one"))
    )
    return [*rows, text_only]


def plain_likelihood(model: Any, processor: Any, question: Conversation) -> tuple[float, bool]:
    """By the book: pixels in, the whole sequence in one row, a sum of log-probabilities."""
    rendered = Renderer(processor, num_image_tokens=4).render(question)
    prompt = Renderer(processor, num_image_tokens=4).prompt(question)
    last = max(i for i, scored in enumerate(rendered.loss_mask) if scored)
    ids = torch.tensor([rendered.ids[: last + 1]])
    pixels = {}
    if question.image is not None:
        pixels = dict(processor.image_processor([open_image(question.image)], return_tensors="pt"))
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixels).logits[0].float()
    start = len(prompt.ids)
    chosen = logits.log_softmax(-1)[start - 1 : last].gather(1, ids[0, start:, None])
    greedy = bool((logits[start - 1 : last].argmax(-1) == ids[0, start:]).all())
    return float(chosen.sum()), greedy


def test_loglikelihood_equals_the_plain_forward_pass(
    scorer: HFScorer, model: Any, processor: Any, questions: list[Conversation]
) -> None:
    """With single continuations (one pass, padded) and with several of one prompt (shared keys and values)."""
    choices = [q.with_answer(a) for q in questions[:6] for a in ("red", "red blue", "the cat dog")]
    for requests in (questions, choices, [*choices, *questions]):
        found = scorer.loglikelihood(requests)
        for request, (logprob, greedy) in zip(requests, found, strict=True):
            expected, expected_greedy = plain_likelihood(model, processor, request)
            assert logprob == pytest.approx(expected, abs=1e-4), request.id
            assert greedy == expected_greedy


def test_what_is_generated_is_what_is_called_greedy(scorer: HFScorer, questions: list[Conversation]) -> None:
    texts = scorer.generate_until(questions, max_tokens=5)
    assert len(set(texts)) > 1
    asked = [(q, text) for q, text in zip(questions, texts, strict=True) if text and len(text.split()) < 5]
    greedy = scorer.loglikelihood([q.with_answer(text) for q, text in asked])
    assert all(flag for _, flag in greedy)
    alone = [scorer.generate_until([q], max_tokens=5)[0] for q in questions]
    assert alone == texts


def test_generation_stops_at_the_longest_answer(scorer: HFScorer, questions: list[Conversation]) -> None:
    assert all(len(text.split()) <= 1 for text in scorer.generate_until(questions, max_tokens=1))


def test_blind_answers_do_not_depend_on_the_picture(model: Any, processor: Any, questions: list[Conversation]) -> None:
    seen = PictureFeatures(model, processor, None)
    blind = HFScorer(model, processor, seen, blind=True, precision="fp32")
    sighted = HFScorer(model, processor, seen, precision="fp32")
    same = [q for q in questions if q.turns[-1].question == "What is this ?"]
    same = [q.with_answer("red") for q in same]
    assert len({q.image for q in same}) > 2
    assert len({round(logprob, 4) for logprob, _ in blind.loglikelihood(same)}) == 1
    assert len({round(logprob, 4) for logprob, _ in sighted.loglikelihood(same)}) > 1


def test_progress_counts_every_request(model: Any, processor: Any, questions: list[Conversation]) -> None:
    done: list[int] = []
    scorer = HFScorer(model, processor, PictureFeatures(model, processor, None), progress=done.append)
    scorer.loglikelihood([*questions, *(q.with_answer("red") for q in questions)])
    scorer.generate_until(questions, max_tokens=1)
    assert sum(done) == 3 * len(questions)
    assert scorer.loglikelihood([]) == []
    assert scorer.generate_until([], max_tokens=1) == []
