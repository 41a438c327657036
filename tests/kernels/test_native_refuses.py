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
    """A legal call of ternary_linear on 70 x 48 weights and 5 tokens, but for `changes`."""
    arguments: dict[str, object] = {
        "packed": kernels.pack(torch.zeros(70, 48, dtype=torch.int8), "2bit"),
        "scale": torch.ones(()),
        "codec_name": "2bit",
        "rows": 70,
        "cols": 48,
        "group": 0,
        "granularity": "tensor",
        "x_q": torch.zeros(5, 48, dtype=torch.int8),
        "s": torch.ones(5),
        "threads": 1,
    }
    return kernels.ternary_linear(**(arguments | changes))  # type: ignore[arg-type]


def test_the_legal_call_is_accepted() -> None:
    assert torch.equal(linear(), torch.zeros(5, 70))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 129}, "have 1536 bytes; 2bit of 129 x 48 takes 2304"),
        ({"rows": 0}, "out of range"),
        ({"rows": -70}, "out of range"),
        ({"rows": 2**62}, "out of range"),
        ({"cols": 2**40, "x_q": torch.zeros(1, 1, dtype=torch.int8).expand(5, 2**40)}, "out of range"),
        ({"cols": 49}, "takes 2048"),
        ({"x_q": torch.zeros(5, 47, dtype=torch.int8)}, r"takes \[tokens, 48\]"),
        ({"cols": 96, "x_q": torch.zeros(5, 96, dtype=torch.int8)}, "takes 3072"),
        ({"codec_name": "4bit"}, "'4bit' is unknown"),
        ({"group": -16, "granularity": "group"}, "out of range"),
        ({"group": 7, "granularity": "group"}, "multiple of 16"),
        ({"group": 16}, "granularity 0 with scale groups"),
        ({"granularity": "group"}, "granularity 2 with scale groups of 0"),
        ({"granularity": "column"}, "'column' is unknown"),
        ({"granularity": "row"}, "1 weight scales where 70"),
        ({"group": 16, "granularity": "group", "scale": torch.ones(70)}, "70 weight scales where 210"),
        ({"s": torch.ones(4)}, "4 activation scales for 5 tokens"),
        ({"s": torch.ones(5).double()}, "s is torch.float64"),
        ({"x_q": torch.zeros(5, 48)}, "x_q is torch.float32"),
        ({"x_q": torch.zeros(48, dtype=torch.int8)}, "2 dimensions"),
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


def test_the_library_checks_sizes_itself() -> None:
    # The door checks first; a caller in C or C++ has only these.
    packed = kernels.pack(torch.zeros(70, 48, dtype=torch.int8), "2bit")
    x_q = torch.zeros(5, 48, dtype=torch.int8)
    out = torch.zeros(5, 70, dtype=torch.int32)

    def message(size: int = 1536, x: int | None = None, x_stride: int = 48, out_stride: int = 70) -> str:
        matrix = library.Matrix(packed.data_ptr(), size, 70, 48, 0, 1)
        data = x_q.data_ptr() if x is None else x
        arguments = (ctypes.byref(matrix), data, 5, x_stride, out.data_ptr(), out_stride, 1)
        status = library.library().mote_ternary_matmul_i32(*arguments)
        return str(library.last_error()) if status else "accepted"

    assert message() == "accepted"
    assert "takes 1536 bytes, not 1535" in message(size=1535)
    assert "null pointer" in message(x=0)
    assert "do not fit a matrix of 70 x 48" in message(x_stride=47)
    assert "do not fit a matrix of 70 x 48" in message(out_stride=69)


@pytest.mark.parametrize(("codec", "byte"), [("2bit", 0b11), ("2bit", 0b11000000), ("base3", 243)])
def test_unpack_names_a_damaged_byte(codec: str, byte: int) -> None:
    packed = kernels.pack(torch.zeros(70, 48, dtype=torch.int8), codec)
    packed.view(-1)[300] = byte
    with pytest.raises(NativeError, match=f"byte {byte} at offset 300"):
        kernels.unpack(packed, codec, 70, 48)


@pytest.mark.parametrize(("codec", "byte"), [("2bit", 255), ("base3", 255), ("base3", 243)])
@pytest.mark.parametrize("isa", kernels.info()["isas"])
def test_damaged_bytes_compute_without_a_crash(isa: str, codec: str, byte: int) -> None:
    kernels.select_isa(isa)
    packed = torch.full((2, 3, 256), byte, dtype=torch.uint8)
    for tokens in (1, 7):
        x_q = torch.full((tokens, 48), -128, dtype=torch.int8)
        assert kernels.ternary_matmul(packed, codec, 70, 48, x_q).shape == (tokens, 70)
    kernels.select_isa(None)


@pytest.mark.parametrize("value", [-2, 2, 127])
def test_pack_takes_ternary_values_only(value: int) -> None:
    q_NK = torch.zeros(3, 5, dtype=torch.int8)
    q_NK[2, 4] = value
    with pytest.raises(NativeError, match=rf"value {value} at \[2, 4\]"):
        kernels.pack(q_NK, "2bit")


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
    with pytest.raises(NativeError, match="has interface 1, this package needs 999"):
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
