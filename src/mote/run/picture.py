"""Pictures as the decoder sees them: vision tower and connector in torch, their output kept by the picture's hash.

Only these two are loaded, and only when a picture is shown that is not known yet; the tower only when the cache on disk
lacks it too. The language model's weights never become torch tensors. Where the processor has no bf16 arithmetic, both
compute in fp32.

Shapes: P features of a picture, D their width, I image tokens, H hidden size.
"""

import importlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mote.checkpoint.shards import Checkpoint
from mote.data.images import picture_hash
from mote.errors import CheckpointError, UnsupportedModelError
from mote.run.families import EYES, Eyes
from mote.ternary.format import WeightFormat, integer_codec

if TYPE_CHECKING:
    import torch
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
            self._open()
            self._features.fill(paths)

    def forget(self) -> None:
        """Drops what is kept in memory, so that the next picture is seen afresh."""
        self._kept.clear()

    def _see(self, path: Path, digest: str) -> Picture:
        import torch

        from mote.model.vision import connect

        self._open()
        begun, loaded = time.perf_counter(), self.loading
        with torch.no_grad():
            features: Tensor = self._features([path])
            if self.blind:
                features = torch.zeros_like(features)
            embeddings = connect(self._parts, features)[0].float().contiguous().numpy()
        self.seconds += time.perf_counter() - begun - (self.loading - loaded)
        return Picture("0" * 64 if self.blind else digest, embeddings)

    def _open(self) -> None:
        """Loads the connector, and the tower where nobody has noted which cache is its."""
        if self._features is not None:
            return
        from torch import nn

        from mote.model.features import PictureFeatures

        self._parts = nn.Module()
        self._parts.config = self._config
        with self._timed():
            self._parts.multi_modal_projector = load_connector(self._checkpoint, self._config)
        files = f"{_stamps(self._checkpoint, self._config)} {_dtype()}"
        self._features = PictureFeatures(
            self._parts, self._processor, self._folder, load_tower=self._load_tower, files=files
        )

    def _load_tower(self) -> None:
        if not hasattr(self._parts, "vision_tower"):
            with self._timed():
                self._parts.vision_tower = load_tower(self._checkpoint, self._config)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.loading += time.perf_counter() - begun


def load_tower(checkpoint: Checkpoint, config: Any) -> "nn.Module":
    """The vision tower in eval mode, from the checkpoint's files. Raises CheckpointError when tensors are missing."""
    from transformers import AutoModel

    tower_class = AutoModel._model_mapping[type(config.vision_config)]
    if checkpoint.mote is not None and integer_codec(checkpoint.mote.tower):
        tower_class = _packed_class(tower_class, checkpoint.mote.tower)
    tower, found = tower_class.from_pretrained(
        None,
        config=config.vision_config,
        state_dict=_tensors(checkpoint, _eyes(checkpoint, config).tower_prefixes),
        output_loading_info=True,
        dtype=_dtype(),
    )
    missing = sorted(found["missing_keys"]) or sorted(map(str, found["mismatched_keys"]))
    if missing:
        raise CheckpointError(f"{checkpoint.root}: the vision tower lacks {missing[0]!r}; fetch the checkpoint again")
    return tower.eval()


def _packed_class(tower_class: Any, fmt: WeightFormat) -> Any:
    """A class of tower that is born with packed modules in the places of its matrices."""
    from mote.model.linears import install_tower

    class Packed(tower_class):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            install_tower(self, fmt)

        @classmethod
        def is_custom_code(cls) -> bool:
            return False  # it keeps its tensors' names, and so transformers may turn older ones into them

    Packed.__name__ = tower_class.__name__  # by which transformers finds these
    return Packed


def load_connector(checkpoint: Checkpoint, config: Any) -> "nn.Module":
    """The connector in fp32 and eval mode, from the checkpoint's files.

    Raises CheckpointError when tensors are missing or left over, UnsupportedModelError for a model without eyes.
    """
    eyes = _eyes(checkpoint, config)
    module, name = eyes.connector
    connector = getattr(importlib.import_module(module), name)(config)
    try:
        connector.load_state_dict(_tensors(checkpoint, eyes.connector_prefixes))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoint.root}: connector: {reason}; fetch the checkpoint again") from None
    return connector.float().eval()


def _eyes(checkpoint: Checkpoint, config: Any) -> Eyes:
    if config.model_type not in EYES:
        raise UnsupportedModelError(
            f"{checkpoint.root}: {config.model_type} has no vision tower; leave the picture out"
        )
    return EYES[config.model_type]


def _dtype() -> "torch.dtype":
    """Of the tower's weights."""
    import torch

    from mote.model.precision import computes_in_bf16

    return torch.bfloat16 if computes_in_bf16(torch.device("cpu")) else torch.float32


def _stamps(checkpoint: Checkpoint, config: Any) -> str:
    """Path, size and time of each file with a part of the tower: other content has another stamp."""
    names = _names(checkpoint, _eyes(checkpoint, config).tower_prefixes).values()
    paths = sorted({(checkpoint.root / checkpoint.info(name).shard).resolve() for name in names})
    return str([(str(path), (found := path.stat()).st_size, found.st_mtime_ns) for path in paths])


def _tensors(checkpoint: Checkpoint, prefixes: tuple[str, ...]) -> "dict[str, Tensor]":
    return {inside: checkpoint.read(name) for inside, name in _names(checkpoint, prefixes).items()}


def _names(checkpoint: Checkpoint, prefixes: tuple[str, ...]) -> dict[str, str]:
    """Name inside of a module -> name in the files, of the first of `prefixes` that there is."""
    for prefix in prefixes:
        found = [name for name in checkpoint.tensors if name.startswith(prefix)]
        if found:
            return {name.removeprefix(prefix): name for name in found}
    raise CheckpointError(f"{checkpoint.root}: holds no tensor under {' or '.join(prefixes)}; fetch it again")
