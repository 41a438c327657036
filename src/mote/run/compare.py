"""The engine against the same checkpoint in transformers, teacher-forced: both read the same tokens.

    flip rate        share of (token, layer) whose routed experts differ
    relative error   |engine - transformers| / |transformers| of a token's logits, over tokens before which, and at
                     which, no layer chose another expert: routing is a discrete choice, so that a last bit may change
                     one, and what follows is then another computation
    agreement        share of tokens after which both find the same token likeliest

The other side computes in fp32 from the same tensors, so that what is left is the order of sums and the cache's dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mote.model.opening import open_model
from mote.run.decoding import Decoding


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found. first_agreement: of the token after the whole text; agreement: after any of its tokens.
    unflipped: tokens that the errors are over. Rates are between 0 and 1, errors are NaN without such a token."""

    texts: int
    tokens: int
    first_agreement: float
    agreement: float
    flip_rate: float
    unflipped: int
    median_error: float
    largest_error: float


def compare(root: Path, engine: Decoding, texts: Sequence[Sequence[int]]) -> Comparison:
    """Runs `texts` (token ids, without pictures) through both. root: the engine's checkpoint."""
    import torch

    model = open_model(root, dtype=torch.float32)
    agreed, first, errors, flips, slots = 0, 0, list[NDArray[np.float64]](), 0, 0
    for ids in texts:
        logits, experts = _engine(engine, ids)
        expected, chosen = _transformers(model, ids)
        differs = np.zeros(len(ids), dtype=bool)
        for layer, route in chosen.items():
            flipped = (np.sort(experts[layer], axis=-1) != np.sort(route, axis=-1)).any(axis=-1)
            flips, slots, differs = flips + int(flipped.sum()), slots + flipped.size, differs | flipped
        same = ~np.logical_or.accumulate(differs)
        errors.append(_distance(logits[same], expected[same]))
        right = logits.argmax(-1) == expected.argmax(-1)
        agreed, first = agreed + int(right.sum()), first + int(right[-1])
    all_errors, tokens = np.concatenate(errors), sum(map(len, texts))
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


def _engine(engine: Decoding, ids: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Logits [T, V] and experts [L, T, k]."""
    sequence = engine.sequence()
    sequence.append(*ids)  # not by `prefill`, which would skip what it knows
    with engine.trace() as routes:
        logits = engine.forward([sequence], [len(ids)])[0]
    engine.free(sequence)
    return logits, np.concatenate([route.expert for route in routes], axis=1)


def _transformers(model: Any, ids: Sequence[int]) -> tuple[NDArray[np.float32], dict[int, NDArray[np.int32]]]:
    """Logits [T, V] and by layer experts [T, k]."""
    import torch

    from mote.model.block import blocks

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
            logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()
    finally:
        for hook in hooks:
            hook.remove()
    return logits, chosen


def _distance(got: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    length = np.linalg.norm(expected.astype(np.float64), axis=-1)
    return np.linalg.norm(got.astype(np.float64) - expected, axis=-1) / np.maximum(length, 1e-30)
