"""What a packed format of ternary matrices is: a way to put P digits in a byte, in the order of `order`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mote.errors import FormatError
from mote.ternary.codecs import order


@dataclass(frozen=True, kw_only=True)
class Codec:
    """One packed format; its functions are pure and accept leading dimensions, such as experts.

    name: key in `CODECS` and in quantization_config.
    digits_per_byte: planes P of one byte.
    group_multiple: what a scale group along K must be a multiple of.
    encode: uint8 digits [..., P] in 0..2 -> uint8 [...].
    decode: uint8 [...] -> uint8 digits [..., P]; an illegal byte gives at least one digit above 2.
    """

    name: str
    digits_per_byte: int
    group_multiple: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    @property
    def k_per_group(self) -> int:
        """Inputs of one k-group: 20 (base3) or 16 (2bit)."""
        return order.LANE_INPUTS * self.digits_per_byte

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight takes when nothing is padded: 1.6 (base3) or 2.0 (2bit)."""
        return 8 / self.digits_per_byte

    def packed_shape(self, rows: int, cols: int, group: int = 0) -> tuple[int, int, int]:
        """(strips, k-groups, 256) of a [rows, cols] matrix; group: inputs per scale along K, 0 for none.

        Raises FormatError for empty dimensions or a group this format cannot hold.
        """
        order.check_dimensions(rows, cols, group)
        if group % self.group_multiple:
            raise FormatError(f"{self.name}: group={group} is not a multiple of {self.group_multiple}")
        strips = -(-rows // order.STRIP_ROWS)
        return strips, order.k_groups(cols, group, self.digits_per_byte), order.K_GROUP_BYTES

    def pack(self, q_NK: Tensor, group: int = 0) -> Tensor:
        """int8 [..., N, K] in {-1, 0, 1} -> uint8 [..., S, KG, 256]. Raises FormatError for anything else."""
        if q_NK.dtype != torch.int8 or q_NK.dim() < 2:
            raise FormatError(
                f"{self.name}: pack takes int8 [..., rows, columns], got {q_NK.dtype} {tuple(q_NK.shape)}"
            )
        rows, cols = q_NK.shape[-2:]
        shape = self.packed_shape(rows, cols, group)
        if bool(((q_NK + 1).view(torch.uint8) > 2).any()):  # -128..-2 and 2..127 all wrap to 3..255
            raise FormatError(f"{self.name}: a weight is not -1, 0 or 1; quantise to ternary before packing")
        digits = order.digits_from_weights(q_NK, group, self.digits_per_byte)
        return self.encode(digits).reshape(*q_NK.shape[:-2], *shape)

    def unpack(self, packed: Tensor, rows: int, cols: int, group: int = 0) -> Tensor:
        """uint8 [..., S, KG, 256] -> int8 [..., N, K], the inverse of `pack`.

        Raises FormatError for a wrong dtype or shape. Digits are not checked: bytes that `check` refuses give
        weights outside {-1, 0, 1}.
        """
        weights, _ = order.weights_from_digits(
            self._digits(packed, rows, cols, group), rows, cols, group, self.digits_per_byte
        )
        return weights

    def check(self, packed: Tensor, rows: int, cols: int, group: int = 0) -> None:
        """Raises FormatError for a wrong dtype or shape, an illegal digit, or padding other than weight 0."""
        digits = self._digits(packed, rows, cols, group)
        if bool((digits > 2).any()):
            raise FormatError(f"{self.name}: illegal digit in a packed [{rows}, {cols}] matrix; the file is damaged")
        _, canonical = order.weights_from_digits(digits, rows, cols, group, self.digits_per_byte)
        if not canonical:
            raise FormatError(f"{self.name}: padding of a packed [{rows}, {cols}] matrix is not 0; the file is damaged")

    def _digits(self, packed: Tensor, rows: int, cols: int, group: int) -> Tensor:
        shape = self.packed_shape(rows, cols, group)
        if packed.dtype != torch.uint8 or tuple(packed.shape[-3:]) != shape:
            raise FormatError(
                f"{self.name}: a packed [{rows}, {cols}] matrix with group={group} is uint8 {shape}; "
                f"got {packed.dtype} {tuple(packed.shape)}"
            )
        tile = (order.ROW_BLOCKS, order.BLOCK_ROWS, order.LANE_INPUTS)
        return self.decode(packed.reshape(*packed.shape[:-1], *tile))
