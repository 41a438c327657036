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
        shapes = [("2bit", 0), ("base3", 0), ("base3", 64), ("int4", 64), ("int8", 64)]
        assert printed == [math.prod(CODECS[name].packed_shape(int(n), int(k), group)) for name, group in shapes]


def test_illegal_bytes() -> None:
    said = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", DOCUMENT.read_text(), flags=re.MULTILINE))
    assert said == {"2bit": "any that contains the digit 3", "base3": "243 to 255", "int4": "none", "int8": "0"}
    counts = {"2bit": 256 - 3**4, "base3": 13, "int4": 0, "int8": 1}
    for name, codec in CODECS.items():
        digits = codec.decode(torch.arange(256, dtype=torch.uint8)).int() - codec.offset
        assert int(((digits < codec.low) | (digits > codec.high)).any(-1).sum()) == counts[name]


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
