"""The matrices of a checkpoint as an export wants them: integers with scales where they are quantised, else floats.

Shapes: N rows, K columns, G scales of a row, each for `group` inputs (all K for a scale per row or matrix).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.layout import VISION, codec_of, gain_of, is_ternary
from mote.checkpoint.shards import Checkpoint, count_not_finite
from mote.errors import CheckpointError
from mote.ternary.codecs import CODECS
from mote.ternary.format import FULL_PRECISION, WeightFormat, integer_codec
from mote.ternary.integers import PackedTensors, dequantize_integers, unpack_integers
from mote.ternary.quantize import quantize_weight


@dataclass(frozen=True)
class Integers:
    """W = scale * q. q: int8 [N, K]; scale: fp32 [N, G]."""

    q: NDArray[np.int8]
    scale: NDArray[np.float32]
    group: int

    def floats(self) -> NDArray[np.float32]:
        """The products, fp32 [N, K]."""
        return self.q * np.repeat(self.scale, self.group, axis=1)[:, : self.q.shape[1]]

    def rows(self, order: NDArray[np.int64]) -> "Integers":
        """With rows in another order."""
        return Integers(self.q[order], self.scale[order], self.group)


Matrix = Integers | NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What is known of a matrix before it is read. format: its numbers; dtype: "BF16" or another in the file ("U8" for
    packed ones); group: inputs per scale."""

    rows: int
    cols: int
    format: WeightFormat
    dtype: str

    @property
    def levels(self) -> int:
        """Largest integer magnitude; 0 for floats, and for grids with zero points, which are multiplied out."""
        if not self.format.symmetric:
            return 0
        # A method other than round to nearest may use the lowest integer too; of 8 bits no codec holds it.
        lowest = integer_codec(self.format) not in (None, "int8")
        return self.format.max_level + 1 if lowest else self.format.max_level

    @property
    def is_float(self) -> bool:
        """Whether no grid is behind the numbers, of integers or of those with zero points."""
        return not self.levels and self.dtype != "U8"

    @property
    def group(self) -> int:
        return self.format.group or self.cols


class Matrices:
    """Reads matrices of `checkpoint`, one at a time, by the name of their module ("model.layers.0.mlp.up_proj")."""

    def __init__(self, checkpoint: Checkpoint, mote: MoteConfig) -> None:
        self._checkpoint = checkpoint
        self._mote = mote

    def floats(self, name: str) -> NDArray[np.float32]:
        """A tensor that is not quantised, by its full name. Raises CheckpointError for NaN and Inf."""
        found: NDArray[np.float32] = self._checkpoint.read(name, finite=True).float().numpy()
        return found

    def stored(self, module: str, rows: int, cols: int) -> Stored:
        """Of a linear, embedding or head. Raises CheckpointError when it is not there or of another shape."""
        if f"{module}.packed" in self._checkpoint.tensors:
            return Stored(rows=rows, cols=cols, format=self._format(module), dtype="U8")
        info = self._checkpoint.info(f"{module}.weight")
        if info.shape != (rows, cols):
            raise CheckpointError(
                f"{self._checkpoint.root}: tensor '{module}.weight' is {list(info.shape)}, config.json asks for "
                f"{[rows, cols]}; fetch both again"
            )
        return Stored(rows=rows, cols=cols, format=self._format(module), dtype=info.dtype)

    def read(self, module: str, stored: Stored) -> Matrix:
        """The matrix itself."""
        fmt = stored.format
        if stored.dtype == "U8":
            return self._decoded(f"{module}.", stored)
        weight = self._checkpoint.read(f"{module}.weight", finite=True)
        return _quantized(weight, stored, 1.0) if fmt.quantizer != "none" else weight.float().numpy()

    def stored_expert(self, stack: str, rows: int, cols: int) -> Stored:
        """Of the routed experts' stack "...mlp.experts.up_proj", which hold one format."""
        name = f"{stack}_packed"
        info = self._checkpoint.info(name if name in self._checkpoint.tensors else stack)
        return Stored(rows=rows, cols=cols, format=self._mote.routed, dtype=info.dtype)

    def read_expert(self, stack: str, expert: int, stored: Stored) -> Matrix:
        """One of the stack. A gain (combine "gated") that is still apart is in its scales or weights."""
        if stored.dtype == "U8":
            return self._decoded(f"{stack}_", stored, expert)
        gain = 1.0
        if name := gain_of(stack, self._checkpoint.tensors):
            gain = float(self._checkpoint.read(name, finite=True)[expert])
        weight = self._checkpoint.read(stack)[expert]
        if bad := count_not_finite(weight):  # of this one: asked of the whole stack, every expert would read it again
            raise CheckpointError(f"{self._checkpoint.root}: tensor {stack!r} holds {bad} NaN or Inf; train it again")
        if stored.format.quantizer != "none":
            return _quantized(weight, stored, gain)
        return (weight.float() * gain).numpy()

    def _decoded(self, prefix: str, stored: Stored, expert: int | None = None) -> Matrix:
        """A packed matrix, or one of a stack of experts, whose tensors' names begin with `prefix`."""
        fmt = stored.format
        names = ("packed", "scale") if fmt.symmetric else ("packed", "scale", "zero")
        tensors = [self._checkpoint.read(f"{prefix}{name}") for name in names]
        packed, scale, *zero = tensors if expert is None else [tensor[expert] for tensor in tensors]
        codec = CODECS[codec_of(self._mote, fmt) or ""]
        codec.check(packed, stored.rows, stored.cols, fmt.group)
        if is_ternary(fmt):
            q = codec.unpack(packed, stored.rows, stored.cols, fmt.group)
            return Integers(q.numpy(), _per_row(scale, stored.rows), stored.group)
        weight = unpack_integers(PackedTensors(packed, scale, *zero), stored.rows, stored.cols, fmt)
        if not fmt.symmetric:
            return dequantize_integers(weight, fmt).numpy()
        return Integers(weight.q.numpy(), _per_row(weight.scale, stored.rows), stored.group)

    def _format(self, module: str) -> WeightFormat:
        """How a matrix outside of the routed experts is quantised."""
        if VISION.search(module):
            return self._mote.tower
        if ".self_attn." in module:
            return self._mote.attention
        if ".mlp." not in module:
            return self._mote.head if f"{module}.packed" in self._checkpoint.tensors else FULL_PRECISION
        mixed = f"{module.rpartition('.')[0]}.router.weight" in self._checkpoint.tensors
        packed = f"{module}.packed" in self._checkpoint.tensors
        # A dense layer's network is not on the shared experts' grid, unless it was packed like them.
        return self._mote.shared if mixed or packed else FULL_PRECISION


def _quantized(weight: Tensor, stored: Stored, gain: float) -> Integers:
    """Float master weights as training saw them."""
    q, scale = quantize_weight(weight, stored.format)
    return Integers(q.numpy(), _per_row(scale * gain, stored.rows), stored.group)


def _per_row(scale: Tensor, rows: int) -> NDArray[np.float32]:
    """Scales [], [N] or [N, G] as [N, G]."""
    scale = scale.to(torch.float32)
    full = scale if scale.ndim == 2 else scale.reshape(-1, 1).expand(rows, 1)
    found: NDArray[np.float32] = full.contiguous().numpy()
    return found
