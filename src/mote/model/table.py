"""One packed table in the place of an embedding and of the head that is tied to it.

The bytes are held once, by the embedding; the head reads them there. So a checkpoint holds them once, nothing has to be
tied after loading, and both always see the same numbers.

Shapes: V tokens of the vocabulary, H hidden.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mote import kernels
from mote.kernels import reference
from mote.model.packed import Backend, PackedMatrix, fill, keep_scales, packed_linear, register
from mote.ternary.integers import PackedTensors


class PackedEmbedding(nn.Module):
    """A packed [V, H] matrix in the place of an `nn.Embedding`: buffers `packed`, `scale` and maybe `zero`; it does not
    train.

    dtype: what looking up returns; it follows `.to(dtype)` as a float embedding would.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, layout: PackedMatrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.layout = layout
        self.num_embeddings, self.embedding_dim = layout.rows, layout.cols
        self.backend: Backend = "native"
        self.dtype = dtype
        register(self, layout.empty())

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [...] to their dequantised rows [..., H]. Raises NativeError for an id that is not there."""
        native = self.backend == "native" and self.packed.device.type == "cpu"
        rows: Callable[..., Tensor] = kernels.rows if native else reference.rows
        layout = self.layout
        sizes = (layout.codec, layout.rows, layout.cols, layout.format.group)
        y = rows(self.packed, self.scale, *sizes, ids.reshape(-1).long(), zero=self.zero)
        return y.to(self.dtype).view(*ids.shape, layout.cols)

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Quantises and packs a float table [V, H] into the buffers."""
        fill(self, self.layout.encode(weight))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.packed.device)).dtype
        return keep_scales(self, super()._apply, fn, recurse)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.num_embeddings}, {self.embedding_dim}, codec={self.layout.codec}"


class TiedHead(nn.Module):
    """The head whose matrix is the packed embedding: [..., H] to logits [..., V], in the dtype that it was given."""

    def __init__(self, table: PackedEmbedding, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self._table = (table,)  # in a tuple, so that it is not a submodule of this one too, with names of its own
        self.in_features, self.out_features = table.embedding_dim, table.num_embeddings
        self.bias = bias

    def forward(self, h: Tensor) -> Tensor:
        """[..., H] to [..., V]."""
        (table,) = self._table
        weight = PackedTensors(table.packed, table.scale, table.zero)
        y = packed_linear(h.reshape(-1, self.in_features), weight, table.layout, table.backend, self.bias)
        return y.to(h.dtype).view(*h.shape[:-1], self.out_features)
