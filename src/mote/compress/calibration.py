"""What calibration reads: a sample of the training mix, rendered as in training, with its pictures.

Conversations of equal length go together, so that no batch has padding, which experts and matrices would otherwise see.

Shape suffixes: B conversations of a batch, T tokens, P vision tokens before the connector, D their width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mote.checkpoint.lineage import file_hash
from mote.data.conversation import Conversation, read_conversations
from mote.data.render import render
from mote.errors import DataError
from mote.model.families import anatomy
from mote.model.features import PictureFeatures
from mote.model.vision import connect

BATCH, TOKENS = 16, 8192
"""Conversations of a batch, and tokens, at most; one that is longer is a batch."""
TRAIN_FILE = "train.jsonl"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """ids: int64 [B, T], without padding. features: [B, P, D] of the pictures, None where there are none."""

    ids: Tensor
    features: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Batches, and what they come from: SHA-256 of the file, counts of conversations, pictures and tokens."""

    batches: tuple[Batch, ...]
    sha256: str
    samples: int
    pictures: int

    @property
    def tokens(self) -> int:
        """All tokens, those of pictures included."""
        return sum(batch.ids.numel() for batch in self.batches)


def calibration_file(data: Path) -> Path:
    """`data`, or the training part of a folder that was drawn. Raises DataError when it is not there."""
    path = data / TRAIN_FILE if data.is_dir() else data
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a LLaVA-style file, or a folder that `mote data draw` made")
    return path


def read_calibration(
    data: Path,
    model: Any,
    processor: Any,
    *,
    samples: int,
    max_length: int,
    seed: int,
    pictures: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """A sample of `data` (see `calibration_file`) as batches for `model`.

    samples: conversations, drawn without replacement, or all where there are fewer. max_length: tokens that one is cut
    to. pictures: whether a sample without any is an error for a model that has eyes. progress: is told (pictures that
    the tower has just seen, all). Raises DataError: bad rows, a picture that cannot be read, no picture at all,
    pictures for a model without eyes.
    """
    path = calibration_file(data)
    conversations = read_conversations(path)
    order = torch.randperm(len(conversations), generator=torch.Generator().manual_seed(seed))[:samples]
    chosen = [conversations[index] for index in order.tolist()]
    seen = [c for c in chosen if c.image is not None]
    has_eyes = anatomy(model).vision_tower is not None
    if seen and not has_eyes:
        raise DataError(f"{seen[0].where}: a picture, but the model has no vision tower; calibrate on text alone")
    if has_eyes and pictures and not seen:
        raise DataError(
            f"{path}: none of {len(chosen)} conversations has a picture, which this model was made for; calibrate on a "
            "sample of its training mix, or say --set pictures=false"
        )
    told = None if progress is None else lambda count: progress(count, len(seen))
    batches = _batches(chosen, model, processor, max_length, told)
    return Calibration(batches=batches, sha256=file_hash(path), samples=len(chosen), pictures=len(seen))


def text_batches(ids: Sequence[int], *, window: int, count: int) -> tuple[Batch, ...]:
    """The first `count` windows of a running text as batches, for models of text alone."""
    rows = torch.tensor(ids[: window * count]).view(-1, window)
    return tuple(Batch(ids=part) for part in torch.split(rows, BATCH // 4))


def _batches(
    chosen: list[Conversation], model: Any, processor: Any, max_length: int, told: Callable[[int], None] | None
) -> tuple[Batch, ...]:
    parts = anatomy(model)
    features = PictureFeatures(model, processor, None) if parts.vision_tower is not None else None
    tokenizer = getattr(processor, "tokenizer", processor)
    image = None if parts.image_token_id is None else tokenizer.convert_ids_to_tokens(parts.image_token_id)
    token = {} if image is None else {"image_token": image}
    count = 0
    rows: dict[tuple[int, bool], list[tuple[tuple[int, ...], Path | None]]] = {}
    for conversation in chosen:
        if conversation.image is not None and features is not None and not count:
            with torch.no_grad():
                count = int(connect(model, features([conversation.image])).shape[1])
        has_picture = conversation.image is not None
        source = processor if has_picture else tokenizer
        rendered = render(
            conversation, source, num_image_tokens=count if has_picture else 0, max_length=max_length, **token
        )
        rows.setdefault((len(rendered), has_picture), []).append((rendered.ids, conversation.image))
    batches = []
    for (length, _), same in sorted(rows.items()):
        size = max(1, min(BATCH, TOKENS // length))
        for start in range(0, len(same), size):
            part = same[start : start + size]
            paths = [path for _, path in part if path is not None]
            seen = features(paths) if features is not None and paths else None
            if told is not None and paths:
                told(len(paths))
            batches.append(Batch(ids=torch.tensor([ids for ids, _ in part]), features=seen))
    return tuple(batches)
