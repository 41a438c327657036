"""The figures that docs/reference/packed-format.md prints are those of the codecs."""

import math
import re
from pathlib import Path

import torch

from mote.ternary.activations import quantize_activation_grouped
from mote.ternary.codecs import CODECS, scales_to_strips

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "packed-format.md"


def test_table_of_sizes() -> None:
    rows = re.findall(r"^\| (\d+) x (\d+) \|(.*)\|$", DOCUMENT.read_text(), flags=re.MULTILINE)
    assert len(rows) == 4
    for n, k, cells in rows:
        printed = [int(cell.split("(")[0].replace(",", "")) for cell in cells.split("|")]
        shapes = [("2bit", 0), ("base3", 0), ("base3", 64), *((f"int{bits}", 64) for bits in (3, 4, 6, 8))]
        assert printed == [math.prod(CODECS[name].packed_shape(int(n), int(k), group)) for name, group in shapes]


def test_illegal_bytes() -> None:
    said = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", DOCUMENT.read_text(), flags=re.MULTILINE))
    some = {"2bit": "any that contains the digit 3", "base3": "243 to 255", "int8": "0"}
    assert said == {name: some.get(name, "none") for name in CODECS}
    counts = {"2bit": 256 - 3**4, "base3": 13, "int8": 1, **dict.fromkeys(("int2", "int4", "uint8"), 0)}
    for name, codec in CODECS.items():
        if codec.blocks > 1:  # 3 and 6 bits of a byte's worth each: every one of them is a digit
            assert codec.high - codec.low + 1 == 2 ** int(name.removeprefix("int"))
            continue
        digits = codec.decode(torch.arange(256, dtype=torch.uint8)).int() - codec.offset
        assert int(((digits < codec.low) | (digits > codec.high)).any(-1).sum()) == counts[name]


def test_table_of_codecs() -> None:
    pattern = r"^\| `(\w+)` \| (-\d+)[^|]*?(\d+) \| weight \+ (\d+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|"
    rows = {name: numbers for name, *numbers in re.findall(pattern, DOCUMENT.read_text(), flags=re.MULTILINE)}
    assert rows == {
        name: [*map(str, (c.low, c.high, c.offset, c.planes, c.k_per_group, c.k_group_bytes, c.bits_per_weight))]
        for name, c in CODECS.items()
    }


def test_table_of_bits_with_scales() -> None:
    rows = re.findall(r"^\| ([23468]) \|(.*)\|$", DOCUMENT.read_text(), flags=re.MULTILINE)
    assert [bits for bits, _ in rows] == list("23468")
    for bits, cells in rows:
        assert [*map(float, cells.split("|"))] == [
            int(bits) + 16 * n / group for n in (1, 2) for group in (32, 64, 128)
        ]


def test_worked_bytes_of_digits_that_are_cut() -> None:
    for name, places, levels, expected in (
        ("int3", (0, 4, 28), (-3, 3, 1), [0x0D, 0x40, 0xFE]),
        ("int6", (0, 12), (-31, 5), [0x01, 0x50, 0xA8]),
    ):
        q = torch.zeros(1, 32, dtype=torch.int8)
        q[0, list(places)] = torch.tensor(levels, dtype=torch.int8)
        packed = CODECS[name].pack(q, 32)[0, 0]
        assert packed[[0, 256, 512]].tolist() == expected
    padding = {"int2": [0xAA], "int3": [0, 0, 0xFF], "int6": [0, 0, 0xAA], "uint8": [0x80]}
    for name, expected in padding.items():
        packed = CODECS[name].pack(torch.zeros(1, 1, dtype=torch.int8), 32)[0, 0]
        assert packed.view(-1, 256)[:, 0].tolist() == expected


def test_worked_bytes() -> None:
    q = torch.zeros(1, 20, dtype=torch.int8)
    q[0, ::4] = torch.tensor([-1, 0, 1, 0, 1], dtype=torch.int8)
    assert CODECS["2bit"].pack(q)[0, 0, 0].item() == 0x64
    assert CODECS["base3"].pack(q)[0, 0, 0].item() == 0xD2
    q = torch.zeros(130, 50, dtype=torch.int8)
    q[129, 49] = 1
    for name, place, step in (("2bit", [2, 3, 5], 1), ("base3", [2, 2, 5], 9)):
        difference = CODECS[name].pack(q).int() - CODECS[name].pack(torch.zeros_like(q)).int()
        assert difference.nonzero().tolist() == [place]
        assert difference.max().item() == step


def test_worked_bytes_of_scaled_formats() -> None:
    q = torch.zeros(1, 8, dtype=torch.int8)
    q[0, ::4] = torch.tensor([-7, 5], dtype=torch.int8)
    assert CODECS["int4"].pack(q, 32)[0, 0, 0].item() == 0xD1
    assert CODECS["int8"].pack(q, 32).flatten()[[0, 256]].tolist() == [0x79, 0x85]
    q = torch.zeros(130, 50, dtype=torch.int8)
    q[129, 49] = 1
    for name, place in (("int4", [2, 6, 5]), ("int8", [2, 12, 5])):
        difference = CODECS[name].pack(q, 16).int() - CODECS[name].pack(torch.zeros_like(q), 16).int()
        assert difference.nonzero().tolist() == [place]
        assert difference.max().item() == 1
    scale = torch.zeros(130, 4)
    scale[129, 3] = 1
    assert scales_to_strips(scale).nonzero().tolist() == [[2, 3, 1]]


def test_worked_arithmetic() -> None:
    x_q, s = quantize_activation_grouped(torch.tensor([[0.5, -1.0, 0.25, 4.0]]), 2)
    assert x_q.tolist() == [[64, -127, 8, 127]]
    assert torch.equal(s, torch.tensor([[1.0, 4.0]]) / 127)
    assert (x_q.view(2, 2).int() * torch.tensor([[3, -7], [5, 7]])).sum(1).tolist() == [1081, 929]
