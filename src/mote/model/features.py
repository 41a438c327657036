"""Vision features of picture files, ready for the connector: from the disk cache, or computed on the spot.

The tower is frozen in every stage, so that training, scoring and answering share one cache. A cache is named by
everything that the features depend on: the tower's weights, which of its layers is taken, and the preprocessing.
Beside the caches lie notes, `towers/<files>.txt`: the name of the cache that belongs to a checkpoint's files, so that a
tower need not be loaded and hashed to look up what it once computed.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mote.data.features import FeatureCache
from mote.data.images import open_image
from mote.errors import UnsupportedModelError
from mote.model.families import eyes
from mote.model.precision import autocast
from mote.model.vision import vision_features

if TYPE_CHECKING:
    from PIL import Image


class PictureFeatures:
    """Gives the features [B, P, D] (bf16, on the CPU) of pictures by path.

    folder: where the cache lies; None computes every time and keeps nothing. load_tower: is called before the tower of
    `model` is used, any number of times. files: what tells the files of the tower from others and from their own
    earlier content; "" where nothing does, and then the tower is hashed each time. Raises DataError for a picture that
    cannot be read, UnsupportedModelError for a model without a vision tower.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        folder: Path | None,
        *,
        load_tower: Callable[[], None] = lambda: None,
        files: str = "",
    ) -> None:
        self._model = model
        self._image_processor = processor.image_processor
        self._load_tower = load_tower
        self._cache = FeatureCache(folder, self._name(folder, files)) if folder is not None else None

    def fill(self, pictures: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> None:
        """Compute what the cache lacks; nothing without a cache. progress is told (done, total)."""
        if self._cache is not None:
            self._cache.fill(pictures, self.compute, progress=progress)

    def __call__(self, pictures: Sequence[Path]) -> Tensor:
        """Features [len(pictures), P, D]."""
        if self._cache is None:
            return self.compute([open_image(path) for path in pictures])
        self._cache.fill(pictures, self.compute)
        return torch.stack([self._cache[path] for path in pictures])

    @torch.no_grad()
    def compute(self, images: "Sequence[Image.Image]") -> Tensor:
        """Features [len(images), P, D] of RGB pictures, without the cache."""
        self._load_tower()
        device = next(self._model.parameters()).device
        try:
            pixels: Tensor = self._image_processor(list(images), return_tensors="pt")["pixel_values"]
        except (ValueError, TypeError, KeyError) as error:  # its settings are a file of the checkpoint
            reason = str(error).splitlines()[0]
            raise UnsupportedModelError(
                f"processor_config.json: no picture can be prepared with it: {reason}"
            ) from error
        with autocast(device):
            return vision_features(self._model, pixels.to(device)).to("cpu", torch.bfloat16)

    def _name(self, folder: Path, files: str) -> str:
        """The cache's name: as noted for these `files`, or else made from the weights, and noted."""
        settings = self._settings()
        if not files:
            return self._identity(settings)
        key = hashlib.sha256(files.encode() + settings).hexdigest()[:16]
        note = folder / "towers" / f"{key}.txt"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if re.fullmatch("[0-9a-f]{16}", noted := note.read_text()):
                return noted
        name = self._identity(settings)
        with contextlib.suppress(OSError):  # a folder that cannot be written is the cache's to tell
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(name)
        return name

    def _settings(self) -> bytes:
        """What features depend on beside pictures and weights."""
        config: Any = self._model.config
        chosen = [config.vision_feature_layer, config.vision_feature_select_strategy]
        return json.dumps([chosen, self._image_processor.to_dict()], sort_keys=True, default=str).encode()

    def _identity(self, settings: bytes) -> str:
        self._load_tower()
        tower = eyes(self._model)[0]
        digest = hashlib.sha256()
        for name, tensor in sorted(tower.state_dict().items()) if tower is not None else ():
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        digest.update(settings)
        return digest.hexdigest()[:16]
