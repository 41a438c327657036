"""From conversations on disk to batches: rendered token ids, answers-only labels, cached vision features.

Legend of shape suffixes: B conversations of a batch, T tokens, P vision tokens before the connector, D their width.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mote.data.conversation import Conversation
from mote.data.render import Renderer
from mote.errors import DataError

IGNORED = -100
"""Label of a position without loss, as torch's cross-entropy has it."""


class ConversationDataset(Dataset[dict[str, Any]]):
    """Conversations as token ids and labels, rendered when asked for.

    features: gives the vision features [1, P, D] of one picture; None where no conversation has a picture.
    blind: zeros in place of the features.
    turns: questions kept of each conversation at most, 0 for all. max_length: tokens; a conversation that is longer
    loses its last turns. Raises DataError for one whose first turn alone is longer.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        processor: Any,
        features: Callable[[Sequence[Path]], Tensor] | None,
        *,
        image_tokens: int,
        blind: bool = False,
        turns: int = 0,
        max_length: int = 2048,
    ) -> None:
        self.conversations = [c.first(turns) if turns else c for c in conversations]
        self._renderer = Renderer(processor, num_image_tokens=image_tokens)
        self._features = features
        self._max_length = max_length
        self._blind = blind

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> dict[str, Any]:
        conversation = self.conversations[index]
        rendered = self._renderer.render(conversation)
        while len(rendered) > self._max_length:
            if len(conversation.turns) == 1:
                raise DataError(
                    f"{conversation.where}: the first turn takes {len(rendered)} tokens, more than "
                    f"max_length={self._max_length}; raise it, or drop the row"
                )
            conversation = conversation.first(len(conversation.turns) - 1)
            rendered = self._renderer.render(conversation)
        ids = torch.tensor(rendered.ids)
        labels = torch.where(torch.tensor(rendered.loss_mask), ids, IGNORED)
        return {"input_ids": ids, "labels": labels, "features": self.features(conversation)}

    def features(self, conversation: Conversation) -> Tensor | None:
        """Vision features [P, D] of the conversation's picture."""
        if conversation.image is None or self._features is None:
            return None
        seen = self._features([conversation.image])[0]
        return torch.zeros_like(seen) if self._blind else seen

    def approximate_lengths(self) -> list[int]:
        """Characters of each conversation: enough to group by, and needs no tokenizer."""
        return [sum(len(t.question) + len(t.answer) for t in c.turns) for c in self.conversations]


class Collator:
    """Pads a batch on the right. Gives input_ids, attention_mask, labels [B, T] and features [images, P, D]."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        length = max(len(sample["input_ids"]) for sample in samples)
        ids_BT = torch.full((len(samples), length), self._pad)
        labels_BT = torch.full((len(samples), length), IGNORED)
        mask_BT = torch.zeros(len(samples), length, dtype=torch.long)
        for row, sample in enumerate(samples):
            count = len(sample["input_ids"])
            ids_BT[row, :count] = sample["input_ids"]
            labels_BT[row, :count] = sample["labels"]
            mask_BT[row, :count] = 1
        batch = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
        features = [sample["features"] for sample in samples if sample["features"] is not None]
        if features:
            batch["features"] = torch.stack(features)
        return batch


class EpochSampler(Sampler[int]):
    """A seeded order, new in each epoch; with lengths, batches hold conversations of similar length.

    The order of epoch e depends on seed and e alone, so that a resumed run sees the batches it would have seen.
    """

    POOL = 8
    """Batches that are sorted by length together: enough to save padding, few enough to keep the order random."""

    def __init__(self, size: int, *, seed: int, batch_size: int, lengths: Sequence[int] | None = None) -> None:
        self._size, self._seed, self._batch, self._lengths = size, seed, batch_size, lengths
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(self._size, generator=generator).tolist()
        if self._lengths is None:
            yield from order
            return
        lengths, pool = self._lengths, self.POOL * self._batch
        batches: list[list[int]] = []
        for start in range(0, self._size, pool):
            chunk = sorted(order[start : start + pool], key=lambda i: -lengths[i])
            batches += [chunk[i : i + self._batch] for i in range(0, len(chunk), self._batch)]
        # A short batch must stay last, or every batch after it would straddle two groups.
        last = [batches.pop()] if batches and len(batches[-1]) < self._batch else []
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[index]
        for batch in last:
            yield from batch
