"""ggml's blocks, byte by byte, against gguf's own reader."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from mote.errors import FormatError
from mote.export.ggml import TYPES, bfloat16

GROUPS = {"Q8_0": 32, "Q4_0": 64, "TQ2_0": 256, "TQ1_0": 256}


def drawn(name: str, rows: int = 3, cols: int = 512, group: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random, kind = np.random.default_rng(0), TYPES[name]
    q = random.integers(kind.low, kind.high + 1, (rows, cols)).astype(np.int8)
    scale = random.uniform(-0.1, 0.1, (rows, -(-cols // (group or cols)))).astype(np.float32)
    return q, scale


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", GROUPS)
def test_every_integer_and_scale_is_read_back(name: str, grouped: bool) -> None:
    group = GROUPS[name] if grouped else 0
    q, scale = drawn(name, group=group)
    data = TYPES[name].write(q, scale, group or q.shape[1])
    assert data.shape == (3, TYPES[name].row_bytes(512))
    rounded = scale.astype(np.float16).astype(np.float32)
    expected = q * np.repeat(rounded, group or q.shape[1], axis=1)
    read = dequantize(data, GGMLQuantizationType[name])
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("name", ["TQ2_0", "TQ1_0"])
def test_ternary_bytes_are_those_of_ggmls_own_quantiser(name: str) -> None:
    q, _ = drawn(name)
    scale = np.full((3, 1), 0.0371, dtype=np.float16).astype(np.float32)
    ours = TYPES[name].write(q, scale, 512)
    np.testing.assert_array_equal(ours, quantize(q * scale, GGMLQuantizationType[name]))


def test_ternary_weights_in_q4_0_keep_both_signs() -> None:
    q = np.tile(np.array([-1, 0, 1, 1], dtype=np.int8), 8)[None]
    scale = np.array([[0.5]], dtype=np.float32)
    data = TYPES["Q4_0"].write(q, scale, 32)
    # d = 0.5 in fp16, then codes 7, 8, 9: weight j below weight j + 16 of a byte.
    assert data.tobytes() == bytes([0x00, 0x38, *[0x77, 0x88, 0x99, 0x99] * 4])
    np.testing.assert_array_equal(dequantize(data, GGMLQuantizationType.Q4_0), q * scale)
    lossy = dequantize(quantize(q * scale, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
    assert np.abs(lossy - q * scale).max() == pytest.approx(0.5 / 8), "ggml's own quantiser clips one sign"


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.random.default_rng(1).standard_normal((4, 33)).astype(np.float32)
    values[0, :2] = [1 + 2**-8, 1 + 3 * 2**-8]
    np.testing.assert_array_equal(bfloat16(values), quantize(values, GGMLQuantizationType.BF16))


@pytest.mark.parametrize(
    ("name", "cols", "group", "value", "scale", "reason"),
    [
        ("TQ2_0", 576, 576, 1, 1.0, "multiples of 256, not 576"),
        ("TQ2_0", 512, 128, 1, 1.0, "a scale per 128 inputs"),
        ("Q4_0", 64, 16, 1, 1.0, "a scale per 16 inputs"),
        ("Q4_0", 32, 32, 8, 1.0, "holds -8..7, not 8..8"),
        ("TQ1_0", 256, 256, 2, 1.0, "holds -1..1"),
        ("Q8_0", 32, 32, 1, 1e6, "out of fp16's range"),
        ("Q8_0", 32, 32, 1, 1e-8, "out of fp16's range"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, cols: int, group: int, value: int, scale: float, reason: str) -> None:
    q = np.full((1, cols), value, dtype=np.int8)
    with pytest.raises(FormatError, match=reason):
        TYPES[name].write(q, np.full((1, cols // group), scale, dtype=np.float32), group)


def test_a_scale_that_is_small_beside_the_others_is_rounded() -> None:
    q = np.full((1, 64), 127, dtype=np.int8)
    data = TYPES["Q8_0"].write(q, np.array([[1e-2, 1e-6]], dtype=np.float32), 32)
    found = data.reshape(2, 34)[:, :2].copy().view(np.float16)[:, 0]
    assert found.tolist() == [np.float16(1e-2), np.float16(1e-6)]


def test_a_scale_of_nothing_may_be_anything() -> None:
    q = np.zeros((1, 32), dtype=np.int8)
    data = TYPES["Q8_0"].write(q, np.array([[1e-12]], dtype=np.float32), 32)
    assert not data.any()
