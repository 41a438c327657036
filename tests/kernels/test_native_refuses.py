"""Malformed sizes, types and values are refused before memory is touched; so is a bad library."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mote import kernels
from mote.errors import NativeError
from mote.kernels import library


def linear(**changes: object) -> Tensor:
    """A legal call of `linear` on 70 x 48 ternary weights and 5 tokens, but for `changes`."""
    arguments: dict[str, object] = {
        "packed": kernels.pack(torch.zeros(70, 48, dtype=torch.int8), "2bit"),
        "scale": torch.ones(()),
        "codec_name": "2bit",
        "rows": 70,
        "cols": 48,
        "group": 0,
        "granularity": "tensor",
        "x": torch.zeros(5, 48),
        "threads": 1,
    }
    return kernels.linear(**(arguments | changes))  # type: ignore[arg-type]


def test_the_legal_call_is_accepted() -> None:
    assert torch.equal(linear(), torch.zeros(5, 70))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 129}, "have 1536 bytes; 2bit of 129 x 48 takes 2304"),
        ({"rows": 0}, "out of range"),
        ({"rows": -70}, "out of range"),
        ({"rows": 2**62}, "out of range"),
        ({"cols": 2**40, "x": torch.zeros(1, 1).expand(5, 2**40)}, "out of range"),
        ({"cols": 49}, "takes 2048"),
        ({"x": torch.zeros(5, 47)}, r"takes \[tokens, 48\]"),
        ({"cols": 96, "x": torch.zeros(5, 96)}, "takes 3072"),
        ({"codec_name": "4bit"}, "'4bit' is unknown"),
        ({"group": -16, "granularity": "group"}, "out of range"),
        ({"group": 7, "granularity": "group"}, "multiple of 16"),
        ({"group": 16}, "granularity 0 with scale groups"),
        ({"granularity": "group"}, "granularity 2 with scale groups of 0"),
        ({"granularity": "column"}, "'column' is unknown"),
        ({"granularity": "row"}, "1 weight scales where 70"),
        ({"group": 16, "granularity": "group", "scale": torch.ones(70)}, "70 weight scales where 210"),
        ({"scale": torch.ones(()).double()}, "scale is torch.float64"),
        ({"scale": None}, "0 weight scales where 1"),
        ({"bias": torch.ones(69)}, "bias has 69 numbers; a matrix of 70 rows"),
        ({"bias": torch.ones(70).double()}, "bias is torch.float64"),
        ({"x": torch.zeros(5, 48, dtype=torch.int8)}, "x is torch.int8"),
        ({"x": torch.zeros(48)}, "2 dimensions"),
        ({"packed": torch.zeros(1536, dtype=torch.int8)}, "packed weights are torch.int8"),
        ({"packed": torch.zeros(3072, dtype=torch.uint8)[::2]}, "contiguous"),
        ({"threads": 0}, "threads=0"),
        ({"out": torch.zeros(5, 69)}, "out is"),
        ({"out": torch.zeros(5, 70, dtype=torch.int32)}, "out is"),
    ],
)
def test_arguments_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(NativeError, match=message):
        linear(**changes)


def test_a_single_row_of_any_stride_is_accepted() -> None:
    x = torch.ones(48, 1).t()
    assert x.stride() == (1, 1)
    packed = kernels.pack(torch.ones(70, 48, dtype=torch.int8), "2bit")
    assert kernels.linear(packed, torch.ones(1), "2bit", 70, 48, 0, "tensor", x).shape == (1, 70)
    assert kernels.quantize_activation(x)[0].tolist() == [[127] * 48]


def test_the_library_checks_sizes_itself() -> None:
    # The door checks first; a caller in C or C++ has only these.
    packed = kernels.pack(torch.zeros(70, 48, dtype=torch.int8), "2bit")
    x_q = torch.zeros(5, 48, dtype=torch.int8)
    out = torch.zeros(5, 70, dtype=torch.int32)

    def message(size: int = 1536, x: int | None = None, x_stride: int = 48, out_stride: int = 70) -> str:
        matrix = kernels.tensors.matrix(packed, "2bit", 70, 48)
        matrix.bytes = size
        data = x_q.data_ptr() if x is None else x
        arguments = (ctypes.byref(matrix), data, 5, x_stride, out.data_ptr(), out_stride, 1)
        status = library.library().mote_matmul_i32(*arguments)
        return str(library.last_error()) if status else "accepted"

    assert message() == "accepted"
    assert "takes 1536 bytes, not 1535" in message(size=1535)
    assert "null pointer" in message(x=0)
    assert "do not fit a matrix of 70 x 48" in message(x_stride=47)
    assert "do not fit a matrix of 70 x 48" in message(out_stride=69)


def int_linear(codec: str, **changes: object) -> Tensor:
    """A legal call of `linear` on 70 x 48 weights that are integers, but for `changes`."""
    arguments: dict[str, object] = {
        "packed": kernels.pack(torch.zeros(70, 48, dtype=torch.int8), codec, 32),
        "scale": torch.ones(2, 2, 64, dtype=torch.bfloat16),
        "codec_name": codec,
        "rows": 70,
        "cols": 48,
        "group": 32,
        "granularity": "group",
        "x": torch.ones(5, 48),
        "threads": 1,
    }
    return kernels.linear(**(arguments | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", ["int3", "int4", "int8"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": 0}, "needs scale groups of a multiple of"),
        ({"group": 30}, "needs scale groups of a multiple of"),
        ({"group": 1032}, "up to 1024"),
        ({"granularity": "row"}, "granularity 1: integers have scales per group"),
        ({"scale": torch.ones(70, 2, dtype=torch.bfloat16)}, "140 weight scales where 256"),
        ({"scale": torch.ones(2, 2, 64)}, "scale is torch.float32"),
        ({"scale": None}, "0 weight scales where 256"),
        ({"rows": 129}, "of 129 x 48 takes"),
        ({"cols": 100, "x": torch.zeros(5, 100)}, "of 70 x 100 takes"),
        ({"bias": torch.ones(71)}, "bias has 71"),
        ({"zero": torch.ones(2, 2, 64)}, "zero is torch.float32"),
    ],
)
def test_scaled_arguments_that_do_not_fit(codec: str, changes: dict[str, object], message: str) -> None:
    assert torch.equal(int_linear(codec), torch.zeros(5, 70))
    with pytest.raises(NativeError, match=message):
        int_linear(codec, **changes)


def test_zero_points_that_do_not_fit() -> None:
    zero = torch.full((2, 2, 64), 4.0, dtype=torch.bfloat16)
    assert torch.equal(int_linear("int3", zero=zero), torch.zeros(5, 70))
    for codec, bad, message in (
        ("int3", zero[:1], "128 zero points where 256 are needed"),
        ("uint8", zero[:, :1], "128 zero points where 256 are needed"),
        ("int8", zero, "format 4 has no zero points"),
    ):
        with pytest.raises(NativeError, match=message):
            int_linear(codec, zero=bad)
    with pytest.raises(NativeError, match="format 1 has no zero points"):
        linear(zero=zero)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packed": torch.ones(4, 6)}, "packed weights are torch.float32.*bf16 takes contiguous torch.bfloat16"),
        ({"packed": torch.ones(4, 5, dtype=torch.bfloat16)}, "have 40 bytes; bf16 of 4 x 6 takes 48"),
        ({"packed": torch.ones(6, 4, dtype=torch.bfloat16).t()}, "contiguous"),
        ({"group": 2}, "no scale groups"),
        ({"scale": torch.ones(())}, "1 weight scales where 0"),
    ],
)
def test_dense_arguments_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    legal: dict[str, object] = {
        "packed": torch.ones(4, 6, dtype=torch.bfloat16),
        "scale": None,
        "codec_name": "bf16",
        "rows": 4,
        "cols": 6,
        "group": 0,
        "granularity": "tensor",
        "x": torch.ones(1, 6),
    }
    assert kernels.linear(**legal).tolist() == [[6.0] * 4]  # type: ignore[arg-type]
    with pytest.raises(NativeError, match=message):
        kernels.linear(**(legal | changes))  # type: ignore[arg-type]


def test_dense_weights_have_no_integers_and_are_not_packed() -> None:
    w = torch.ones(4, 6, dtype=torch.bfloat16)
    with pytest.raises(NativeError, match="have no integers"):
        kernels.matmul_i32(w, "bf16", 4, 6, torch.zeros(1, 6, dtype=torch.int8))
    with pytest.raises(NativeError, match="are not packed"):
        kernels.unpack(w, "bf16", 4, 6)
    with pytest.raises(NativeError, match="row-major"):
        kernels.pack(torch.zeros(64, 256, dtype=torch.int8), "f32")


def test_sums_of_integers_that_might_overflow_are_refused() -> None:
    packed = kernels.pack(torch.zeros(1, 65537, dtype=torch.int8), "int8", 64)
    with pytest.raises(NativeError, match="65537 columns may overflow"):
        kernels.matmul_i32(packed, "int8", 1, 65537, torch.zeros(1, 65537, dtype=torch.int8), 64)


DAMAGE = [("2bit", 0, 0b11), ("2bit", 0, 0b11000000), ("base3", 0, 243), ("int8", 16, 0)]


@pytest.mark.parametrize(("codec", "group", "byte"), DAMAGE)
def test_unpack_names_a_damaged_byte(codec: str, group: int, byte: int) -> None:
    packed = kernels.pack(torch.zeros(70, 48, dtype=torch.int8), codec, group)
    packed.view(-1)[300] = byte
    with pytest.raises(NativeError, match=f"byte {byte} at offset 300"):
        kernels.unpack(packed, codec, 70, 48, group)


@pytest.mark.parametrize(("codec", "group", "byte"), [("2bit", 0, 255), ("base3", 0, 255), *DAMAGE])
@pytest.mark.parametrize("isa", kernels.info()["isas"])
def test_damaged_bytes_compute_without_a_crash(isa: str, codec: str, group: int, byte: int) -> None:
    kernels.select_isa(isa)
    packed = torch.full_like(kernels.pack(torch.zeros(70, 48, dtype=torch.int8), codec, group), byte)
    for tokens in (1, 7):
        x_q = torch.full((tokens, 48), -128, dtype=torch.int8)
        assert kernels.matmul_i32(packed, codec, 70, 48, x_q, group).shape == (tokens, 70)
    kernels.select_isa(None)


@pytest.mark.parametrize(
    ("codec", "value"),
    [("2bit", -2), ("2bit", 2), ("base3", 127), ("int4", -9), ("int4", 8), ("int8", -128)],
)
def test_pack_takes_legal_values_only(codec: str, value: int) -> None:
    q_NK = torch.zeros(3, 5, dtype=torch.int8)
    q_NK[2, 4] = value
    with pytest.raises(NativeError, match=rf"value {value} at \[2, 4\]"):
        kernels.pack(q_NK, codec, 8 if codec.startswith("int") else 0)


def test_an_unknown_isa_is_named() -> None:
    with pytest.raises(NativeError, match=r"isa=sse9 names no kernels .* use one of: .*scalar"):
        kernels.select_isa("sse9")


@pytest.fixture
def fresh_library() -> Iterator[None]:
    library.library.cache_clear()
    yield
    library.library.cache_clear()


@pytest.mark.usefixtures("fresh_library")
def test_a_missing_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOTE_LIBRARY", str(tmp_path / "absent.so"))
    with pytest.raises(NativeError, match=r"absent\.so cannot be used .*pip install"):
        kernels.info()


@pytest.mark.usefixtures("fresh_library")
def test_a_file_that_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bad.so").write_bytes(b"not a library")
    monkeypatch.setenv("MOTE_LIBRARY", str(tmp_path / "bad.so"))
    with pytest.raises(NativeError, match="cannot be used"):
        kernels.info()


@pytest.mark.usefixtures("fresh_library")
def test_another_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI", 999)
    with pytest.raises(NativeError, match="has interface 3, this package needs 999"):
        kernels.info()


def in_subprocess(code: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_environment_chooses_the_isa() -> None:
    code = (
        "import mote.kernels as k\n"
        "try: print(k.info()['isa'])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    assert in_subprocess(code, {"MOTE_ISA": "scalar"}).strip() == "scalar"
    assert in_subprocess(code, {"MOTE_ISA": "avx1024"}).startswith("NativeError MOTE_ISA=avx1024 names no")
