"""What a packed format is: a way to put P digits in one byte, or in a few, in the order of `order`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mote.errors import FormatError
from mote.ternary.codecs import order

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Codec:
    """One packed format; its functions are pure and accept leading dimensions, such as experts.

    name: key in `CODECS` and in quantization_config.
    planes: digits P that one row and one of its 4 neighbouring inputs have in a k-group.
    blocks: bytes Q that hold them, which lie 256 apart: 1, or more where digits are cut into bits.
    group_multiple: what a scale group along K must be a multiple of.
    encode: uint8 digits [..., P] in low + offset .. high + offset -> uint8 [...], or [..., Q] where Q > 1.
    decode: its inverse, to uint8 digits [..., P]; an illegal byte gives at least one digit outside that range.
    low, high: legal weights. offset: digit of weight 0.
    max_group: integer codecs: they always have scale groups, of this many inputs at most. 0: groups are optional.
    """

    name: str
    planes: int
    group_multiple: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    low: int = -1
    high: int = 1
    offset: int = 1
    max_group: int = 0
    blocks: int = 1

    @property
    def k_per_group(self) -> int:
        """Inputs of one k-group: 20 (base3), 16 (2bit, int2, int6), 32 (int3), 8 (int4) or 4 (int8, uint8)."""
        return order.LANE_INPUTS * self.planes

    @property
    def k_group_bytes(self) -> int:
        """Bytes of one k-group of one strip: 256, or 768 (int3, int6)."""
        return order.BLOCK_BYTES * self.blocks

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight takes when nothing is padded: 1.6 (base3), 2.0 (2bit, int2), 3.0, 4.0, 6.0 or 8.0."""
        return 8 * self.blocks / self.planes

    def packed_shape(self, rows: int, cols: int, group: int = 0) -> tuple[int, int, int]:
        """(strips, k-groups, bytes of a k-group) of a [rows, cols] matrix; group: inputs per scale along K, 0 for none.

        Raises FormatError for empty dimensions or a group this format cannot hold.
        """
        order.check_dimensions(rows, cols, group)
        if group % self.group_multiple:
            raise FormatError(f"{self.name}: group={group} is not a multiple of {self.group_multiple}")
        if self.max_group and not 0 < group <= self.max_group:
            raise FormatError(f"{self.name}: group={group} is out of range; use scale groups of 1 to {self.max_group}")
        strips = -(-rows // order.STRIP_ROWS)
        return strips, order.k_groups(cols, group, self.planes), self.k_group_bytes

    def pack(self, q_NK: Tensor, group: int = 0) -> Tensor:
        """int8 [..., N, K] in low..high -> uint8 [..., S, KG, 256 Q]. Raises FormatError for anything else."""
        import torch

        if q_NK.dtype != torch.int8 or q_NK.dim() < 2:
            raise FormatError(
                f"{self.name}: pack takes int8 [..., rows, columns], got {q_NK.dtype} {tuple(q_NK.shape)}"
            )
        rows, cols = q_NK.shape[-2:]
        shape = self.packed_shape(rows, cols, group)
        if self._illegal(order.shifted(q_NK, self.offset)):
            legal = "-1, 0 or 1" if self.low == -1 else f"in {self.low}..{self.high}"
            raise FormatError(f"{self.name}: a weight is not {legal}; quantise before packing")
        digits = order.digits_from_weights(q_NK, group, self.planes, self.offset)
        packed = self.encode(digits)
        if self.blocks > 1:
            packed = packed.movedim(-1, -4)  # [..., C, R, B, Q] -> [..., Q, C, R, B]
        return packed.reshape(*q_NK.shape[:-2], *shape)

    def unpack(self, packed: Tensor, rows: int, cols: int, group: int = 0) -> Tensor:
        """uint8 [..., S, KG, 256 Q] -> int8 [..., N, K], the inverse of `pack`.

        Raises FormatError for a wrong dtype or shape. Digits are not checked: bytes that `check` refuses give
        weights outside low..high.
        """
        weights, _ = order.weights_from_digits(
            self._digits(packed, rows, cols, group), rows, cols, group, self.planes, self.offset
        )
        return weights

    def check(self, packed: Tensor, rows: int, cols: int, group: int = 0) -> None:
        """Raises FormatError for a wrong dtype or shape, an illegal digit, or padding other than weight 0."""
        digits = self._digits(packed, rows, cols, group)
        if self._illegal(digits):
            raise FormatError(f"{self.name}: illegal digit in a packed [{rows}, {cols}] matrix; the file is damaged")
        _, canonical = order.weights_from_digits(digits, rows, cols, group, self.planes, self.offset)
        if not canonical:
            raise FormatError(f"{self.name}: padding of a packed [{rows}, {cols}] matrix is not 0; the file is damaged")

    def _illegal(self, digits: Tensor) -> bool:
        # In uint8 a digit below the range wraps above it.
        return bool(((digits - (self.low + self.offset)) > self.high - self.low).any())

    def _digits(self, packed: Tensor, rows: int, cols: int, group: int) -> Tensor:
        import torch

        shape = self.packed_shape(rows, cols, group)
        if packed.dtype != torch.uint8 or tuple(packed.shape[-3:]) != shape:
            raise FormatError(
                f"{self.name}: a packed [{rows}, {cols}] matrix with group={group} is uint8 {shape}; "
                f"got {packed.dtype} {tuple(packed.shape)}"
            )
        tile = (order.ROW_BLOCKS, order.BLOCK_ROWS, order.LANE_INPUTS)
        if self.blocks == 1:
            return self.decode(packed.reshape(*packed.shape[:-1], *tile))
        return self.decode(packed.reshape(*packed.shape[:-1], self.blocks, *tile).movedim(-4, -1))
