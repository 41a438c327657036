"""The engine as evaluation sees it: answers and log-probabilities of conversations, as `mote.evaluate.Scorer` has them.

Requests with one prompt (the choices of a multiple choice, several questions about a picture) share what they have in
common: a prompt is decoded once and forked, and requests are taken in the order of their pictures, so that the engine's
prefix cache holds the picture. Sequences of a batch are decoded together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mote.data.conversation import Conversation
from mote.errors import EngineError
from mote.run.cache import Sequence as Text
from mote.run.decoding import Routes
from mote.run.engine import Engine
from mote.run.picture import Picture
from mote.run.sampling import log_probability

ROWS = 512
"""Rows of logits that are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One request as tokens: `prompt` to be read, `answer` (end of turn included) to be scored."""

    index: int
    request: Conversation
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    pictures: tuple[Picture, ...]

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        """Equal for requests with the same prompt about the same picture."""
        return (self.pictures[0].digest if self.pictures else "", self.prompt)


class EngineScorer:
    """Scores with an `Engine`. batch_tokens: tokens of the sequences that are decoded together. `progress` is called
    with the number of requests that are done. Raises EngineError for a request that is longer than the model has
    positions, and names it; an answer that is generated ends at the last position."""

    def __init__(self, engine: Engine, *, batch_tokens: int = 4096) -> None:
        self._engine = engine
        self._batch_tokens = batch_tokens
        self.progress: Callable[[int], None] = lambda done: None
        self._loads = Loads(engine)

    def routing(self) -> list[dict[str, Any]]:
        """Per layer with a mixture {"layer", "load_text", "load_image", "mean_gate"} of all tokens decoded so far."""
        return self._loads.rows()

    def fill(self, pictures: Sequence[Path]) -> None:
        """Runs the vision tower on the pictures that the cache on disk lacks."""
        if self._engine.sight is not None:
            self._engine.sight.fill(list(pictures))

    def loglikelihood(self, requests: Sequence[Conversation]) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy) of every request's last answer and its end of turn."""
        found: dict[int, tuple[float, bool]] = {}
        for batch in self._traced(self._batches(requests, lambda item: len(item.answer))):
            self._check(batch, lambda item: len(item.prompt) + len(item.answer) - 1)  # the last one is not decoded
            prompts = self._prompts(batch)
            texts = [self._engine.fork(prompts[item.key][0]) for item in batch]
            try:
                first = [_likelihood(prompts[item.key][1][None], item.answer[:1]) for item in batch]
                for item, (start, right), (rest, all_right) in zip(batch, first, self._rest(texts, batch), strict=True):
                    found[item.index] = (start + rest, right and all_right)
            finally:
                for text in [*texts, *(text for text, _ in prompts.values())]:
                    self._engine.free(text)
            self.progress(len(batch))
        return [found[index] for index in range(len(requests))]

    def generate_until(self, requests: Sequence[Conversation], *, max_tokens: int = 24) -> list[str]:
        """Greedy answers, up to the end of turn or `max_tokens` tokens."""
        found: dict[int, str] = {}
        for batch in self._traced(self._batches(requests, lambda item: max_tokens)):
            self._check(batch, lambda item: len(item.prompt))
            prompts = self._prompts(batch)
            try:
                for item, ids in zip(batch, self._decode(prompts, batch, max_tokens), strict=True):
                    found[item.index] = self._engine.prompter.text(ids).strip()
            finally:
                for text, _ in prompts.values():
                    self._engine.free(text)
            self.progress(len(batch))
        return [found[index] for index in range(len(requests))]

    def _traced(self, batches: Iterator[list[Prepared]]) -> Iterator[list[Prepared]]:
        for batch in batches:
            with self._engine.trace() as routes:
                yield batch
            self._loads.add(routes)

    def _prepare(self, index: int, request: Conversation) -> Prepared:
        pictures = () if request.image is None else (self._engine.picture(Path(request.image)),)
        count = sum(len(picture.embeddings) for picture in pictures)
        prompt, answer = self._engine.prompter.both(request, count)
        return Prepared(index=index, request=request, prompt=prompt, answer=answer, pictures=pictures)

    def _check(self, batch: list[Prepared], tokens: Callable[[Prepared], int]) -> None:
        """Raises EngineError when the model has fewer positions than a request needs `tokens`."""
        for item in batch:
            if tokens(item) > self._engine.positions:
                raise EngineError(
                    f"{item.request.where or item.request.id}: {tokens(item)} tokens, and the model has "
                    f"{self._engine.positions} positions; shorten the row or leave it out"
                )

    def _batches(self, requests: Sequence[Conversation], extra: Callable[[Prepared], int]) -> Iterator[list[Prepared]]:
        """Requests by picture and prompt, as many as `batch_tokens` holds. extra: tokens that follow a prompt."""
        order = sorted(range(len(requests)), key=lambda i: (str(requests[i].image or ""), i))
        batch: list[Prepared] = []
        tokens = 0
        for index in order:
            item = self._prepare(index, requests[index])
            size = extra(item) + (0 if any(item.key == other.key for other in batch) else len(item.prompt))
            if batch and tokens + size > self._batch_tokens:
                yield batch
                batch, tokens = [], 0
                size = extra(item) + len(item.prompt)
            batch.append(item)
            tokens += size
        if batch:
            yield batch

    def _prompts(self, batch: list[Prepared]) -> dict[tuple[str, tuple[int, ...]], tuple[Text, np.ndarray]]:
        """The decoded prompts of a batch, each once, with the logits after them."""
        decoded = {}
        for item in batch:
            if item.key not in decoded:
                text = self._engine.sequence()
                decoded[item.key] = (text, self._engine.prefill(text, item.prompt, item.pictures))
        return decoded

    def _rest(self, texts: list[Text], batch: list[Prepared]) -> list[tuple[float, bool]]:
        """Likelihoods of all tokens of each answer but the first, a bounded number of rows of logits at a time."""
        found = [(0.0, True)] * len(batch)
        waiting = [place for place, item in enumerate(batch) if len(item.answer) > 1]
        while waiting:
            part: list[int] = []
            count = 0
            while waiting and (not part or count + len(batch[waiting[0]].answer) <= ROWS):
                part.append(waiting.pop(0))
                count += len(batch[part[-1]].answer)
            for place in part:
                texts[place].append(*batch[place].answer[:-1])  # the last token predicts nothing that is scored
            rows = self._engine.forward([texts[p] for p in part], [len(batch[p].answer) - 1 for p in part])
            for place, logits in zip(part, rows, strict=True):
                found[place] = _likelihood(logits, batch[place].answer[1:])
        return found

    def _decode(
        self, prompts: dict[tuple[str, tuple[int, ...]], tuple[Text, np.ndarray]], batch: list[Prepared], limit: int
    ) -> list[list[int]]:
        """Greedy tokens of each answer, all rows in step; finished ones leave."""
        ids: list[list[int]] = [[] for _ in batch]
        texts = [self._engine.fork(prompts[item.key][0]) for item in batch]
        logits = [prompts[item.key][1] for item in batch]
        sizes = [sum(len(picture.embeddings) for picture in item.pictures) for item in batch]
        prompter = self._engine.prompter
        ends = [prompter.ends(item.request, size) for item, size in zip(batch, sizes, strict=True)]
        alive = list(range(len(batch)))
        try:
            for _ in range(limit):
                tokens = {row: int(logits[row].argmax()) for row in alive}
                alive = [row for row in alive if tokens[row] not in ends[row]]
                for row in alive:
                    ids[row].append(tokens[row])
                    texts[row].append(tokens[row])
                alive = [row for row in alive if len(ids[row]) < limit and texts[row].length < self._engine.positions]
                if not alive:
                    break
                for row, found in zip(alive, self._engine.step([texts[row] for row in alive]), strict=True):
                    logits[row] = found
        finally:
            for text in texts:
                self._engine.free(text)
        return ids


class Loads:
    """How many tokens each routed expert took, text and pictures apart."""

    def __init__(self, engine: Engine) -> None:
        layers, experts = engine.weights.mixture
        self._layers = layers
        self._taken = np.zeros((2, len(layers), experts), dtype=np.int64)
        self._gates = np.zeros(len(layers))
        self._tokens = 0

    def add(self, routes: Sequence[Routes]) -> None:
        """Counts the tokens of a trace."""
        if not self._layers or not routes:
            return
        layers = list(self._layers)
        keys = [route.sequence.keys[route.start : route.start + route.expert.shape[1]] for route in routes]
        seen = np.concatenate(keys) < 0
        experts = np.concatenate([route.expert[layers] for route in routes], axis=1)
        # One count of (text or picture, layer, expert), as a single number.
        row = seen[:, None] * len(layers) + np.arange(len(layers))[:, None, None]
        taken = np.bincount((row * self._taken.shape[2] + experts).reshape(-1), minlength=self._taken.size)
        self._taken += taken.reshape(self._taken.shape)
        self._gates += sum(route.gate[layers].sum(axis=(1, 2), dtype=np.float64) for route in routes)
        self._tokens += seen.size

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer with a mixture; see `EngineScorer.routing`."""
        return [
            {
                "layer": layer,
                "load_text": self._taken[0, place].tolist(),
                "load_image": self._taken[1, place].tolist(),
                "mean_gate": float(self._gates[place] / max(1, self._tokens)),
            }
            for place, layer in enumerate(self._layers)
        ]


def _likelihood(logits: np.ndarray, answer: Sequence[int]) -> tuple[float, bool]:
    """Of `answer` (A tokens) under the logits [A, V] that predict each of them; row by row, so that no copy of them is
    made."""
    logprob = sum(log_probability(row, token) for row, token in zip(logits, answer, strict=True))
    return logprob, bool((logits.argmax(-1) == np.array(answer)).all())
