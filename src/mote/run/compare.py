"""The engine against the same checkpoint in transformers, teacher-forced: both read the same tokens.

    flip rate        share of (token, layer) whose routed experts differ
    relative error   |engine - transformers| / |transformers| of a token's logits, over tokens before which, and at
                     which, no layer chose another expert: routing is a discrete choice, so that a last bit may change
                     one, and what follows is then another computation
    agreement        share of tokens after which both find the same token likeliest; first agreement is that of the
                     token with which an answer begins

The other side computes in fp32 from the same tensors and pictures' embeddings, so that what is left is the order of
sums and the cache's dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mote.data.conversation import Conversation
from mote.model.opening import open_model
from mote.run.decoding import Decoding
from mote.run.engine import Engine
from mote.run.picture import Picture


@dataclass(frozen=True, kw_only=True)
class Text:
    """Tokens that both sides read. prompt: how many of them stand before the answer; 0 for all of them. picture: of the
    image tokens among them."""

    ids: Sequence[int]
    prompt: int = 0
    picture: Picture | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found. first_agreement: of the token after the prompt; agreement: after any token of the texts.
    unflipped: tokens that the errors are over. Rates are between 0 and 1, errors are NaN without such a token."""

    texts: int
    tokens: int
    first_agreement: float
    agreement: float
    flip_rate: float
    unflipped: int
    median_error: float
    largest_error: float


def texts_of(engine: Engine, conversations: Sequence[Conversation]) -> list[Text]:
    """Conversations up to their last answers, which both sides then read in each other's place."""
    found = []
    for conversation in conversations:
        picture = None if conversation.image is None else engine.picture(conversation.image)
        prompt, answer = engine.prompter.both(conversation, 0 if picture is None else len(picture.embeddings))
        found.append(Text(ids=(*prompt, *answer[:-1]), prompt=len(prompt), picture=picture))
    return found


def compare(root: Path, engine: Decoding, texts: Sequence[Text]) -> Comparison:
    """Runs `texts` through both. root: the engine's checkpoint."""
    import torch

    model = open_model(root, dtype=torch.float32)
    agreed, first, errors, flips, slots = 0, 0, list[NDArray[np.float64]](), 0, 0
    for text in texts:
        logits, experts = _engine(engine, text)
        expected, chosen = _transformers(model, text)
        differs = np.zeros(len(text.ids), dtype=bool)
        for layer, route in chosen.items():
            flipped = (np.sort(experts[layer], axis=-1) != np.sort(route, axis=-1)).any(axis=-1)
            flips, slots, differs = flips + int(flipped.sum()), slots + flipped.size, differs | flipped
        same = ~np.logical_or.accumulate(differs)
        errors.append(_distance(logits[same], expected[same]))
        right = logits.argmax(-1) == expected.argmax(-1)
        agreed, first = agreed + int(right.sum()), first + int(right[text.prompt - 1])
    all_errors, tokens = np.concatenate(errors), sum(len(text.ids) for text in texts)
    return Comparison(
        texts=len(texts),
        tokens=tokens,
        first_agreement=first / len(texts),
        agreement=agreed / tokens,
        flip_rate=flips / max(1, slots),
        unflipped=all_errors.size,
        median_error=float(np.median(all_errors)) if all_errors.size else float("nan"),
        largest_error=float(all_errors.max()) if all_errors.size else float("nan"),
    )


def _engine(engine: Decoding, text: Text) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Logits [T, V] and experts [L, T, k]."""
    sequence = engine.sequence()
    if text.picture is None:
        sequence.append(*text.ids)
    else:
        engine.prefixes.clear()  # what was kept would not be decoded again
        engine.add(sequence, text.ids, [text.picture])
    with engine.trace() as routes:
        logits = engine.forward([sequence], [len(text.ids)])[0]
    engine.free(sequence)
    return logits, np.concatenate([route.expert for route in routes], axis=1)


def _transformers(model: Any, text: Text) -> tuple[NDArray[np.float32], dict[int, NDArray[np.int32]]]:
    """Logits [T, V] and by layer experts [T, k]."""
    import torch

    from mote.model.block import blocks
    from mote.model.vision import shown

    chosen: dict[int, NDArray[np.int32]] = {}
    hooks = [
        block.router.register_forward_hook(
            lambda module, args, route, layer=block.layer_index: chosen.update(
                {layer: route.expert_Tk.to(torch.int32).numpy()}
            )
        )
        for block in blocks(model)
    ]
    try:
        with torch.no_grad():
            extra = {}
            if text.picture is not None:
                extra["mm_encoder_outputs"] = shown(model, torch.from_numpy(text.picture.embeddings)[None])
            logits = model(input_ids=torch.tensor([list(text.ids)]), use_cache=False, **extra).logits[0].float().numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return logits, chosen


def _distance(got: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    length = np.linalg.norm(expected.astype(np.float64), axis=-1)
    return np.linalg.norm(got.astype(np.float64) - expected, axis=-1) / np.maximum(length, 1e-30)
