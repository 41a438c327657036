"""The figures that docs/reference/packed-format.md prints are those of the codecs."""

import math
import re
from pathlib import Path

import torch

from mote.ternary.codecs import CODECS

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "packed-format.md"


def test_table_of_sizes() -> None:
    rows = re.findall(r"^\| (\d+) x (\d+) \|(.*)\|$", DOCUMENT.read_text(), flags=re.MULTILINE)
    assert len(rows) == 4
    for n, k, cells in rows:
        printed = [int(cell.split("(")[0].replace(",", "")) for cell in cells.split("|")]
        shapes = [("2bit", 0), ("base3", 0), ("base3", 64)]
        assert printed == [math.prod(CODECS[name].packed_shape(int(n), int(k), group)) for name, group in shapes]


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
