"""Pictures as the decoder sees them: vision tower and connector in torch, their output kept by the picture's hash.

Only these two are loaded, and only when a picture is shown that is not known yet. The language model's weights never
become torch tensors. Where the processor has no bf16 arithmetic, both compute in fp32.

Shapes: P features of a picture, D their width, I image tokens, H hidden size.
"""

import importlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mote.checkpoint.shards import Checkpoint
from mote.data.images import picture_hash
from mote.errors import CheckpointError, UnsupportedModelError
from mote.run.families import EYES

if TYPE_CHECKING:
    from torch import Tensor, nn

KEPT = 16
"""Pictures whose embeddings stay in memory."""


@dataclass(frozen=True)
class Picture:
    """What the decoder gets of a picture. digest: of its file; embeddings fp32 [I, H]."""

    digest: str
    embeddings: NDArray[np.float32]


class Sight:
    """Shows pictures to the model of `checkpoint`.

    config: the transformers config. processor: with an image processor. folder: cache of features on disk, as training
    and evaluation share it; None keeps them in memory only. blind: every picture's features are zero. seconds: spent on
    seeing so far, loading apart; loading: on loading tower and connector.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: Any, processor: Any, folder: Path | None = None, *, blind: bool = False
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._processor = processor
        self._folder = folder
        self._features: Any = None
        self._parts: Any = None
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self.blind = blind
        self.seconds = 0.0
        self.loading = 0.0

    def __call__(self, path: Path) -> Picture:
        """The picture in the file `path`. Raises DataError when it cannot be read."""
        digest = picture_hash(path)
        if digest not in self._kept:
            self._kept[digest] = self._see(path, digest)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(digest)
        return self._kept[digest]

    def fill(self, paths: list[Path]) -> None:
        """Runs the tower on pictures that the cache on disk lacks, several at a time; nothing without one."""
        if self._folder is not None:
            self._load()
            self._features.fill(paths)

    def forget(self) -> None:
        """Drops what is kept in memory, so that the next picture is seen afresh."""
        self._kept.clear()

    def _see(self, path: Path, digest: str) -> Picture:
        import torch

        from mote.model.vision import connect

        self._load()
        begun = time.perf_counter()
        with torch.no_grad():
            features: Tensor = self._features([path])
            if self.blind:
                features = torch.zeros_like(features)
            embeddings = connect(self._parts, features)[0].float().contiguous().numpy()
        self.seconds += time.perf_counter() - begun
        return Picture("0" * 64 if self.blind else digest, embeddings)

    def _load(self) -> None:
        if self._features is not None:
            return
        from mote.model.features import PictureFeatures

        begun = time.perf_counter()
        self._parts = load_parts(self._checkpoint, self._config)
        self._features = PictureFeatures(self._parts, self._processor, self._folder)
        self.loading = time.perf_counter() - begun


def load_parts(checkpoint: Checkpoint, config: Any) -> "nn.Module":
    """A module with `.vision_tower`, `.multi_modal_projector` and `.config`, in eval mode, from the checkpoint's files.

    Raises CheckpointError when tensors are missing or left over, UnsupportedModelError for a model without eyes.
    """
    import torch
    from torch import nn
    from transformers import AutoModel

    from mote.model.precision import computes_in_bf16

    if config.model_type not in EYES:
        raise UnsupportedModelError(
            f"{checkpoint.root}: {config.model_type} has no vision tower; leave the picture out"
        )
    eyes = EYES[config.model_type]
    dtype = torch.bfloat16 if computes_in_bf16(torch.device("cpu")) else torch.float32
    tower_class = AutoModel._model_mapping[type(config.vision_config)]
    tower, found = tower_class.from_pretrained(
        None,
        config=config.vision_config,
        state_dict=_tensors(checkpoint, eyes.tower_prefixes),
        output_loading_info=True,
        dtype=dtype,
    )
    missing = sorted(found["missing_keys"]) or sorted(map(str, found["mismatched_keys"]))
    if missing:
        raise CheckpointError(f"{checkpoint.root}: the vision tower lacks {missing[0]!r}; fetch the checkpoint again")
    module, name = eyes.connector
    connector = getattr(importlib.import_module(module), name)(config)
    try:
        connector.load_state_dict(_tensors(checkpoint, eyes.connector_prefixes))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoint.root}: connector: {reason}; fetch the checkpoint again") from None
    parts = nn.Module()
    parts.vision_tower = tower
    parts.multi_modal_projector = connector.float()
    parts.config = config
    return parts.eval()


def _tensors(checkpoint: Checkpoint, prefixes: tuple[str, ...]) -> "dict[str, Tensor]":
    for prefix in prefixes:
        found = [name for name in checkpoint.tensors if name.startswith(prefix)]
        if found:
            return {name.removeprefix(prefix): checkpoint.read(name) for name in found}
    raise CheckpointError(f"{checkpoint.root}: holds no tensor under {' or '.join(prefixes)}; fetch it again")
