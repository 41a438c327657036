"""The order of digits in a packed matrix: what the codecs share and the kernels read front to back.

A matrix W[N, K] is cut into strips of 64 rows; inside a strip lie k-groups of 4 * P inputs, one after the
other, where P is the number of digits in a byte; one k-group of one strip is 256 bytes:

    byte[s, g, c * 64 + r * 4 + b] = sum_p digit(row = 64 s + 16 c + r, input = 4 P g + 4 p + b) * radix^p

(int3 and int6 cut digits into bits, which lie in three such blocks, one after the other). So 64 consecutive bytes serve
16 rows, and 4 consecutive bytes hold, plane by plane, the 4 neighbouring inputs that one lane of a dot-product
instruction multiplies. digit = weight + offset (1 for ternary weights); rows and inputs beyond the matrix have weight
0. With scales per group of inputs, each scale group starts on a fresh k-group, and its last k-group is padded. Byte by
byte: docs/reference/packed-format.md.

Shape suffixes: N rows, K inputs, S strips, J k-groups (stored as KG), C = 4 row blocks, R = 16 rows, P
planes, B = 4 inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mote.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

STRIP_ROWS = 64
ROW_BLOCKS = 4
BLOCK_ROWS = 16
LANE_INPUTS = 4
BLOCK_BYTES = STRIP_ROWS * LANE_INPUTS


def scale_group_widths(cols: int, group: int) -> tuple[int, int, int]:
    """(full groups, width of a full group, width of the shorter last group or 0) of `cols` inputs."""
    width = group or cols
    return cols // width, width, cols % width


def k_groups(cols: int, group: int, planes: int) -> int:
    """Number of k-groups per strip."""
    full, width, rest = scale_group_widths(cols, group)
    per = LANE_INPUTS * planes
    return full * -(-width // per) + -(-rest // per)


def digits_from_weights(q_NK: Tensor, group: int, planes: int, offset: int) -> Tensor:
    """int8 [..., N, K] -> uint8 digits [..., S, J, C, R, B, P], padded with weight 0."""
    import torch
    from torch.nn.functional import pad

    rows, cols = q_NK.shape[-2:]
    digits_NK = shifted(q_NK, offset)
    full, width, rest = scale_group_widths(cols, group)
    per = LANE_INPUTS * planes
    parts = []
    if full:
        whole = torch.unflatten(digits_NK[..., : full * width], -1, (full, width))
        parts.append(pad(whole, (0, -width % per), value=offset).flatten(-2))
    if rest:
        parts.append(pad(digits_NK[..., full * width :], (0, -rest % per), value=offset))
    padded = pad(torch.cat(parts, dim=-1), (0, 0, 0, -rows % STRIP_ROWS), value=offset)
    tiles = torch.unflatten(padded, -1, (-1, planes, LANE_INPUTS))
    tiles = torch.unflatten(tiles, -4, (-1, ROW_BLOCKS, BLOCK_ROWS))
    lead = range(q_NK.dim() - 2)
    first = len(lead)  # [..., S, C, R, J, P, B] -> [..., S, J, C, R, B, P]
    return tiles.permute(*lead, *(first + d for d in (0, 3, 1, 2, 5, 4)))


def weights_from_digits(
    digits: Tensor, rows: int, cols: int, group: int, planes: int, offset: int
) -> tuple[Tensor, bool]:
    """Inverse of `digits_from_weights`: (int8 [..., N, K], whether all padding is weight 0)."""
    import torch

    first = digits.dim() - 6
    lead = range(first)  # [..., S, J, C, R, B, P] -> [..., S, C, R, J, P, B]
    tiles = digits.permute(*lead, *(first + d for d in (0, 2, 3, 1, 5, 4)))
    flat = tiles.flatten(-3).flatten(-4, -2)
    canonical = _all_are(offset, flat[..., rows:, :])
    flat = flat[..., :rows, :]
    full, width, rest = scale_group_widths(cols, group)
    per = LANE_INPUTS * planes
    stored = -(-width // per) * per
    parts = []
    if full:
        whole = torch.unflatten(flat[..., : full * stored], -1, (full, stored))
        canonical = canonical and _all_are(offset, whole[..., width:])
        parts.append(whole[..., :width].flatten(-2))
    if rest:
        tail = flat[..., full * stored :]
        canonical = canonical and _all_are(offset, tail[..., rest:])
        parts.append(tail[..., :rest])
    return (torch.cat(parts, dim=-1) - offset).view(torch.int8), canonical


def check_dimensions(rows: int, cols: int, group: int) -> None:
    """Raises FormatError unless there is something to pack."""
    if rows < 1 or cols < 1 or group < 0:
        raise FormatError(
            f"cannot pack rows={rows}, columns={cols}, group={group}; need rows, columns >= 1, group >= 0"
        )


def shifted(q: Tensor, offset: int) -> Tensor:
    """int8 weights -> uint8 digits; weights outside 0 .. 255 - offset wrap."""
    import torch

    return q.view(torch.uint8) + offset


def scales_to_strips(scale_NG: Tensor) -> Tensor:
    """Scales [..., N, G] -> bf16 [..., S, G, 64], rounded to nearest even; those of padded rows are 0."""
    import torch
    from torch.nn.functional import pad

    scale_NG = pad(scale_NG.to(torch.bfloat16), (0, 0, 0, -scale_NG.shape[-2] % STRIP_ROWS))
    return torch.unflatten(scale_NG, -2, (-1, STRIP_ROWS)).transpose(-1, -2).contiguous()


def scales_from_strips(scale_SGR: Tensor, rows: int) -> Tensor:
    """bf16 [..., S, G, 64] -> fp32 [..., N, G], the inverse but for rounding."""
    import torch

    return scale_SGR.transpose(-1, -2).flatten(-3, -2)[..., :rows, :].to(torch.float32)


def _all_are(digit: int, digits: Tensor) -> bool:
    return bool((digits == digit).all())
