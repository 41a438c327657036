"""A transformers model as a `Scorer`: dense, up-cycled or packed.

Pictures enter as the vision tower's features, cached on disk, so that a tower that never changes is run once
per picture. Three ways through the model:

- one continuation: prompt and continuation in one forward pass, rows of similar length together, padded on
the right - several continuations of one prompt (a multiple choice): the prompt runs once, and its keys and
values are shared - generation: greedy, prompts of equal length together, finished rows leave the batch

Shapes: B rows, T tokens, P vision tokens of width D, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mote.data.conversation import Conversation
from mote.data.render import Renderer
from mote.model.families import anatomy
from mote.model.precision import Precision, autocast
from mote.model.vision import connect, encoder_outputs

IGNORED = -1


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One request as tokens: `prompt` to be read, `answer` (end of turn included) to be scored."""

    index: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    image: Path | None

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


class HFScorer:
    """Scores with `model` (in eval mode, on its device) and its `processor`.

    features: the vision features of pictures by path. blind: zeros in their place. batch_tokens: tokens of
    one forward pass. progress: called with the number of requests that are done.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        features: Callable[[Sequence[Path]], Tensor] | None = None,
        *,
        blind: bool = False,
        batch_tokens: int = 4096,
        precision: Precision = "auto",
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._model = model.eval()
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._features = features
        self._blind = blind
        self._batch_tokens = batch_tokens
        self._precision: Precision = precision
        self._progress = progress or (lambda done: None)
        self._device = next(model.parameters()).device
        self._image_tokens: int | None = None
        self._renderers: dict[int, Renderer] = {}

    @torch.no_grad()
    def loglikelihood(self, requests: Sequence[Conversation]) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy) of every request's last answer and its end of turn."""
        groups: dict[tuple[Path | None, tuple[int, ...]], list[Prepared]] = {}
        for index, request in enumerate(requests):
            prepared = self._prepare(index, request)
            groups.setdefault((prepared.image, prepared.prompt), []).append(prepared)
        found: dict[int, tuple[float, bool]] = {}
        single = [group[0] for group in groups.values() if len(group) == 1]
        for batch in self._batches(single, lambda item: item.length):
            found.update(self._score_whole(batch))
            self._progress(len(batch))
        shared = [group for group in groups.values() if len(group) > 1]
        for group_batch in self._equal_prompts(shared):
            found.update(self._score_shared(group_batch))
            self._progress(sum(len(group) for group in group_batch))
        return [found[index] for index in range(len(requests))]

    @torch.no_grad()
    def generate_until(self, requests: Sequence[Conversation], *, max_tokens: int = 24) -> list[str]:
        """Greedy answers, up to the end of turn or `max_tokens` tokens."""
        found: dict[int, str] = {}
        prepared = [self._prepare(index, request) for index, request in enumerate(requests)]
        for batch in self._equal_prompts([[item] for item in prepared], extra=max_tokens):
            rows = [group[0] for group in batch]
            for item, ids in zip(rows, self._generate(rows, max_tokens), strict=True):
                found[item.index] = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
            self._progress(len(rows))
        return [found[index] for index in range(len(requests))]

    def _prepare(self, index: int, request: Conversation) -> Prepared:
        if request.image is not None and self._image_tokens is None:
            self._image_tokens = int(connect(self._model, self._pictures([request.image])).shape[1])
        count = 0 if request.image is None else self._image_tokens or 0
        if count not in self._renderers:
            self._renderers[count] = self._renderer(count)
        renderer = self._renderers[count]
        prompt = renderer.prompt(request).ids
        whole = renderer.render(request)
        # The template may go on after the end of turn (a line break); what is scored ends with the last
        # masked token.
        end = max(place for place, scored in enumerate(whole.loss_mask) if scored) + 1
        return Prepared(index=index, prompt=prompt, answer=whole.ids[len(prompt) : end], image=request.image)

    def _renderer(self, image_tokens: int) -> Renderer:
        token_id = anatomy(self._model).image_token_id
        if token_id is None:
            return Renderer(self._tokenizer, num_image_tokens=image_tokens)
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        return Renderer(self._processor, num_image_tokens=image_tokens, image_token=token)

    def _pictures(self, paths: Sequence[Path]) -> Tensor:
        """Features [B, P, D] for the connector, which takes them from any device and dtype."""
        if self._features is None:
            raise TypeError("a request has a picture but this scorer was made without features")
        features = self._features(paths)
        return torch.zeros_like(features) if self._blind else features

    def _forward(self, ids: Tensor, mask: Tensor, images: Iterable[Path | None], **extra: Any) -> Any:
        """One pass of the model over token ids [B, T]; `images` are those of its rows, in order."""
        paths = [image for image in images if image is not None]
        with autocast(self._device, self._precision):
            if paths:
                extra["mm_encoder_outputs"] = encoder_outputs(self._model, self._pictures(paths))
            return self._model(input_ids=ids, attention_mask=mask, **extra)

    def _score_whole(self, batch: list[Prepared]) -> dict[int, tuple[float, bool]]:
        """Prompt and answer in one pass; logits only at the positions where some row's answer is
        predicted.
        """
        ids_BT, mask_BT = self._pad([item.prompt + item.answer for item in batch])
        keep = sorted({p for item in batch for p in range(len(item.prompt) - 1, item.length - 1)})
        place = {position: k for k, position in enumerate(keep)}
        output = self._forward(
            ids_BT,
            mask_BT,
            [item.image for item in batch],
            logits_to_keep=torch.tensor(keep, device=self._device),
            use_cache=False,
        )
        result = {}
        for row, item in enumerate(batch):
            columns = [place[len(item.prompt) - 1 + k] for k in range(len(item.answer))]
            result[item.index] = _likelihood(output.logits[row, columns], item.answer)
        return result

    def _score_shared(self, groups: list[list[Prepared]]) -> dict[int, tuple[float, bool]]:
        """Prompts of equal length once each, then all their continuations on the shared keys and values."""
        prompts = [group[0] for group in groups]
        ids_BT, mask_BT = self._pad([item.prompt for item in prompts])
        images = [item.image for item in prompts]
        prefix = self._forward(ids_BT, mask_BT, images, logits_to_keep=1, use_cache=True)
        rows = [row for row, group in enumerate(groups) for _ in group]
        items = [item for group in groups for item in group]
        first_RV = prefix.logits[:, -1]
        # The last token of a continuation predicts nothing that is scored.
        rest_ids, rest_mask = self._pad([item.answer[:-1] for item in items])
        rest: Tensor | None = None
        if rest_ids.shape[1]:
            selected = torch.tensor(rows, device=self._device)
            prefix.past_key_values.batch_select_indices(selected)
            mask = torch.cat([mask_BT[selected], rest_mask], dim=1)
            rest = self._forward(rest_ids, mask, [], past_key_values=prefix.past_key_values, use_cache=True).logits
        result = {}
        for r, item in enumerate(items):
            logits = first_RV[rows[r]][None]
            if rest is not None:
                logits = torch.cat([logits, rest[r, : len(item.answer) - 1]])
            result[item.index] = _likelihood(logits, item.answer)
        return result

    def _generate(self, batch: list[Prepared], max_tokens: int) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in batch]
        for step in self._decode(batch, max_tokens):
            for row, token in step.items():
                answers[row].append(token)
        return answers

    @torch.no_grad()
    def _decode(self, batch: list[Prepared], max_tokens: int) -> Iterator[dict[int, int]]:
        """Yields, token by token, {row: token} of the rows that are not finished. Prompts are of one
        length.
        """
        ends = self._end_tokens(batch)
        alive = list(range(len(batch)))
        ids_BT, mask_BT = self._pad([item.prompt for item in batch])
        images = [item.image for item in batch]
        output = self._forward(ids_BT, mask_BT, images, logits_to_keep=1, use_cache=True)
        for count in range(max_tokens):
            tokens = output.logits[:, -1].float().argmax(-1).tolist()
            going = [k for k, token in enumerate(tokens) if token not in ends]
            if not going:
                return
            yield {alive[k]: tokens[k] for k in going}
            if count == max_tokens - 1:
                return
            cache = output.past_key_values
            if len(going) < len(tokens):
                selected = torch.tensor(going, device=self._device)
                cache.batch_select_indices(selected)
                mask_BT = mask_BT[selected]
            alive = [alive[k] for k in going]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(going), 1)], dim=1)
            ids = torch.tensor([[tokens[k]] for k in going], device=self._device)
            output = self._forward(ids, mask_BT, [], past_key_values=cache, use_cache=True)

    def _end_tokens(self, batch: list[Prepared]) -> set[int]:
        """What ends an answer: the model's own end tokens, and the one that ends the answers it was trained
        on.
        """
        ends = {item.answer[-1] for item in batch}
        own = self._model.generation_config.eos_token_id
        return ends | set(own if isinstance(own, list) else [] if own is None else [own])

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask [B, T], padded on the right with a token that is never looked at."""
        length = max(map(len, rows))
        ids_BT = torch.zeros(len(rows), length, dtype=torch.long)
        mask_BT = torch.zeros(len(rows), length, dtype=torch.long)
        for row, ids in enumerate(rows):
            ids_BT[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
            mask_BT[row, : len(ids)] = 1
        return ids_BT.to(self._device), mask_BT.to(self._device)

    def _batches(self, items: list[Prepared], length: Callable[[Prepared], int]) -> Iterator[list[Prepared]]:
        """Longest first (what does not fit into memory shows at once), as many as `batch_tokens` holds."""
        batch: list[Prepared] = []
        for item in sorted(items, key=lambda item: (-length(item), item.index)):
            if batch and (len(batch) + 1) * length(batch[0]) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch

    def _equal_prompts(self, groups: list[list[Prepared]], extra: int = 0) -> Iterator[list[list[Prepared]]]:
        """Batches of groups whose prompts have one length, longest first. extra: tokens to come after a
        prompt.
        """
        by_length: dict[int, list[list[Prepared]]] = {}
        for group in groups:
            by_length.setdefault(len(group[0].prompt), []).append(group)
        for length, members in sorted(by_length.items(), reverse=True):
            widest = max(length + sum(len(item.answer) for item in group) for group in members)
            size = max(1, self._batch_tokens // (max(widest, length + extra)))
            for start in range(0, len(members), size):
                yield members[start : start + size]


def _likelihood(logits_AV: Tensor, answer: Sequence[int]) -> tuple[float, bool]:
    """Of `answer` (A tokens) under the logits that predict each of them."""
    logits_AV = logits_AV.float()
    targets = torch.tensor(answer, device=logits_AV.device)
    chosen = logits_AV.log_softmax(-1).gather(1, targets[:, None])
    return float(chosen.sum()), bool((logits_AV.argmax(-1) == targets).all())
