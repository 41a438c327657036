"""Which type a matrix gets, and what is said about it."""

from dataclasses import replace

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from mote.errors import FormatError
from mote.export.fit import choose, write
from mote.export.ggml import TYPES
from mote.export.matrices import Integers, Stored
from mote.ternary.format import FULL_PRECISION, WeightFormat


def ternary(cols: int, group: int = 0) -> Stored:
    fmt = WeightFormat(granularity="group" if group else "tensor", group=group)
    return Stored(rows=4, cols=cols, format=fmt, dtype="U8")


def integers(bits: int, group: int) -> Stored:
    fmt = WeightFormat(
        quantizer=f"int{bits}",  # type: ignore[arg-type]
        scale="absmax",
        granularity="group",
        group=group,
        activation="int8_group",
    )
    return Stored(rows=4, cols=512, format=fmt, dtype="U8")


ZERO_POINTS = replace(integers(4, 64), format=replace(integers(4, 64).format, symmetric=False))
FLOATS = Stored(rows=4, cols=512, format=FULL_PRECISION, dtype="BF16")


@pytest.mark.parametrize(
    ("asked", "stored", "expected", "note"),
    [
        ("TQ2_0", ternary(512), "TQ2_0", ""),
        ("TQ1_0", ternary(512), "TQ1_0", ""),
        ("TQ2_0", ternary(512, 256), "TQ2_0", ""),
        ("TQ2_0", ternary(576), "Q4_0", "rows of 576 are no multiple of 256"),
        ("TQ1_0", ternary(512, 64), "Q4_0", "a scale per 64 inputs cuts"),
        ("Q8_0", ternary(512, 64), "Q8_0", ""),
        ("F32", ternary(36), "F32", ""),
        ("BF16", ternary(36), "BF16", "rounded to BF16"),
        ("auto", ternary(512), "TQ2_0", ""),
        ("auto", integers(4, 64), "Q4_0", ""),
        ("auto", integers(4, 16), "Q8_0", "rounded anew to Q8_0"),
        ("auto", integers(8, 128), "Q8_0", ""),
        ("Q4_0", integers(8, 128), "Q4_0", "rounded anew to Q4_0"),
        ("auto", FLOATS, "BF16", ""),
        ("Q4_0", FLOATS, "Q4_0", ""),
        ("Q4_0", ZERO_POINTS, "Q4_0", "int4 per 64 multiplied out and rounded anew to Q4_0"),
        ("auto", ZERO_POINTS, "BF16", "int4 multiplied out, products rounded to BF16"),
        ("Q8_0", ternary(36), "BF16", "rows of 36 are no multiple of 32: BF16 instead of Q8_0"),
        ("auto", replace(integers(8, 64), cols=80), "BF16", "rows of 80 are no multiple of 32: BF16 instead of Q8_0"),
    ],
)
def test_the_type_and_the_note(asked: str, stored: Stored, expected: str, note: str) -> None:
    choice = choose(asked, stored, "blk.0.ffn_up_exps")
    assert choice.type.name == expected
    assert bool(choice.note) == bool(note)
    assert note in choice.note


@pytest.mark.parametrize(
    ("asked", "stored", "reason"),
    [
        ("TQ2_0", FLOATS, "these are floats; choose Q8_0"),
        ("TQ2_0", integers(4, 64), "these are int4"),
        ("TQ2_0", ternary(36), "choose BF16 or F32"),
        ("TQ2_0", ternary(512, 40), "choose BF16 or F32"),
    ],
)
def test_what_no_type_holds_is_refused_by_name(asked: str, stored: Stored, reason: str) -> None:
    with pytest.raises(FormatError, match=f"blk.0.ffn_up_exps: .*{reason}"):
        choose(asked, stored, "blk.0.ffn_up_exps")


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "BF16", "F32"])
def test_integers_that_do_not_fit_are_multiplied_out(name: str) -> None:
    random = np.random.default_rng(0)
    matrix = Integers(
        random.integers(-127, 128, (4, 64)).astype(np.int8), random.uniform(0.01, 0.02, (4, 4)).astype(np.float32), 16
    )
    data = write(matrix, TYPES[name])
    read = dequantize(data, GGMLQuantizationType[name]) if name != "F32" else data.view(np.float32)
    step = {"Q4_0": 1 / 8, "Q8_0": 1 / 127, "BF16": 2**-8, "F32": 0.0}[name]
    error = np.abs(read - matrix.floats()).max()
    assert error <= step * np.abs(matrix.floats()).max()
    assert (error == 0) == (name == "F32")
