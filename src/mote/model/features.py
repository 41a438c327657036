"""Vision features of picture files, ready for the connector: from the disk cache, or computed on the spot.

The tower is frozen in every stage, so that training, scoring and answering share one cache. A cache is named by
everything that the features depend on: the tower's weights, which of its layers is taken, and the preprocessing.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mote.data.features import FeatureCache
from mote.data.images import open_image
from mote.model.families import anatomy
from mote.model.precision import autocast
from mote.model.vision import vision_features


class PictureFeatures:
    """Gives the features [B, P, D] (bf16) of pictures by path.

    folder: where the cache lies; None computes every time and keeps nothing. Raises UnsupportedModelError for a model
    without a vision tower, DataError for a picture that cannot be read.
    """

    def __init__(self, model: nn.Module, processor: Any, folder: Path | None) -> None:
        self._model = model
        self._image_processor = processor.image_processor
        self._cache: FeatureCache | None = None
        if folder is not None:
            probe = self._compute_pixels(self._blank())
            shape = (probe.shape[1], probe.shape[2])
            self._cache = FeatureCache(folder, self._identity(), shape=shape)

    def fill(self, pictures: Sequence[Path], *, progress: bool = True) -> None:
        """Compute what the cache lacks; nothing without a cache."""
        if self._cache is not None:
            self._cache.fill(pictures, self._compute, progress=progress)

    def __call__(self, pictures: Sequence[Path]) -> Tensor:
        """Features [len(pictures), P, D]."""
        if self._cache is None:
            return self._compute(pictures)
        if self._cache.missing(pictures):
            self._cache.fill(pictures, self._compute, progress=False)
        return self._cache.rows(pictures)

    def _compute(self, pictures: Sequence[Path]) -> Tensor:
        images = [open_image(path) for path in pictures]
        return self._compute_pixels(self._image_processor(images, return_tensors="pt")["pixel_values"])

    @torch.no_grad()
    def _compute_pixels(self, pixel_values: Tensor) -> Tensor:
        device = next(self._model.parameters()).device
        with autocast(device):
            return vision_features(self._model, pixel_values.to(device)).to("cpu", torch.bfloat16)

    def _blank(self) -> Tensor:
        from PIL import Image

        picture = Image.new("RGB", (64, 64))
        pixels: Tensor = self._image_processor([picture], return_tensors="pt")["pixel_values"]
        return pixels

    def _identity(self) -> str:
        tower = anatomy(self._model).vision_tower
        digest = hashlib.sha256()
        for name, tensor in sorted(tower.state_dict().items()) if tower is not None else ():
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        config: Any = self._model.config
        chosen = [config.vision_feature_layer, config.vision_feature_select_strategy]
        preprocessing = self._image_processor.to_dict()
        digest.update(json.dumps([chosen, preprocessing], sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]
