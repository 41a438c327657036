"""Headers as from a stranger: whatever the bytes, a checked list of tensors or a CheckpointError."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from mote.checkpoint.header import (
    HEADER_LIMIT,
    PlannedTensor,
    build_header,
    data_order,
    dtype_name,
    read_header,
)
from mote.errors import CheckpointError

F32_2 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write_raw(path: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def write_plain(path: Path, plain: Any, data: bytes) -> Path:
    return write_raw(path, json.dumps(plain).encode(), data)


def test_reads_what_it_promises(tmp_path: Path) -> None:
    plain = {
        "b": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]},
        "a": F32_2,
        "__metadata__": {"k": "v"},
    }
    path = write_plain(tmp_path / "x.safetensors", plain, bytes(11))
    start = path.stat().st_size - 11
    found = read_header(path)
    assert [(info.name, info.dtype, info.shape, info.offset, info.nbytes) for info in found] == [
        ("a", "F32", (2,), start, 8),
        ("b", "U8", (3,), start + 8, 3),
    ]


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({"a": {**F32_2, "data_offsets": [0, 16]}}, "outside the file"),
        ({"a": {**F32_2, "data_offsets": [8, 0]}}, "outside the file"),
        ({"a": {**F32_2, "data_offsets": [-8, 0]}}, "impossible offsets"),
        ({"a": {**F32_2, "data_offsets": [0.0, 8.0]}}, "impossible offsets"),
        ({"a": {**F32_2, "data_offsets": [0, 4, 8]}}, "impossible offsets"),
        ({"a": {**F32_2, "shape": [3]}}, "does not fill"),
        ({"a": {**F32_2, "shape": [-2]}}, "impossible shape"),
        ({"a": {**F32_2, "shape": [True, 2]}}, "impossible shape"),
        ({"a": {**F32_2, "shape": [1 << 63, 0]}}, "impossible shape"),
        ({"a": {**F32_2, "shape": [1] * 40}}, "impossible shape"),
        ({"a": {**F32_2, "shape": "2"}}, "impossible shape"),
        ({"a": {**F32_2, "dtype": "F31"}}, "unknown dtype"),
        ({"a": {**F32_2, "dtype": ["F32"]}}, "unknown dtype"),
        ({"a": {**F32_2, "more": 1}}, "header entry"),
        ({"a": [1]}, "header entry"),
        ({"a": F32_2, "b": F32_2}, "overlaps"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, "hole"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, "describes"),
        ({"a": F32_2, "__metadata__": {"k": 1}}, "__metadata__"),
        ([1], "not a safetensors file"),
    ],
)
def test_refuses_a_lying_header(tmp_path: Path, plain: Any, words: str) -> None:
    path = write_plain(tmp_path / "x.safetensors", plain, bytes(8))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "length", "words"),
    [
        (b"{}", 1 << 63, "claims a header"),
        (b"{}", HEADER_LIMIT + 1, "claims a header"),
        (b"{}", 3, "claims a header"),
        (b"not json", None, "not a safetensors file"),
        (b"{\xff}", None, "not valid JSON"),
        (b"{" * 50_000, None, "not valid JSON"),
        (b'{"a":' + b"[" * 50_000, None, "not valid JSON"),
        (b'{"a":' + b"9" * 5_000 + b"}", None, "not valid JSON"),
        (b'{"__metadata__":{},"__metadata__":{}}', None, "twice"),
    ],
)
def test_refuses_a_broken_header(tmp_path: Path, header: bytes, length: int | None, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_header(write_raw(tmp_path / "x.safetensors", header, b"", length))


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "absent.safetensors")
    (tmp_path / "short.safetensors").write_bytes(b"1234567")
    with pytest.raises(CheckpointError, match="too short"):
        read_header(tmp_path / "short.safetensors")


sizes = st.integers(-2, 9) | st.sampled_from([1 << 31, 1 << 62, 1 << 64, 0.5, None, True, "1"])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "BF16", "I64", "Q7"]),
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2),
    }
)
headers = st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__", ""]), entries | st.none(), max_size=3)


def accepted_by_both(path: Path) -> None:
    """Ours raises nothing but CheckpointError; safetensors accepts what ours does, in the same shapes."""
    try:
        found = read_header(path)
    except CheckpointError:
        return
    try:
        with safe_open(path, framework="np") as theirs:
            assert {info.name: info.shape for info in found} == {
                name: tuple(theirs.get_slice(name).get_shape())
                for name in theirs.keys()  # noqa: SIM118
            }
    except SafetensorError as error:  # pragma: no cover
        pytest.fail(f"accepted what safetensors refuses: {error}")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plain=headers, data=st.integers(0, 16))
def test_hostile_entries(tmp_path: Path, plain: Any, data: int) -> None:
    accepted_by_both(write_plain(tmp_path / "x.safetensors", plain, bytes(data)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), value=st.integers(0, 255), keep=st.integers(0, 400))
def test_one_byte_changed_or_cut(tmp_path: Path, at: int, value: int, keep: int) -> None:
    plan = data_order([PlannedTensor("a", "F32", (2, 3)), PlannedTensor("b", "U8", (64,))])
    raw = bytearray(build_header(plan) + bytes(24 + 64))
    raw[at % len(raw)] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw if keep > len(raw) else raw[:keep])
    accepted_by_both(path)


shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
plans = st.lists(st.tuples(st.sampled_from(["U8", "BF16", "F32", "I64"]), shapes), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans)
def test_what_we_build_we_and_safetensors_read(tmp_path: Path, plan: list[tuple[str, tuple[int, ...]]]) -> None:
    tensors = data_order([PlannedTensor(f"t{i}é", dtype, shape) for i, (dtype, shape) in enumerate(plan)])
    header = build_header(tensors)
    assert len(header) % 64 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + bytes(sum(tensor.nbytes for tensor in tensors)))
    found = {info.name: info for info in read_header(path)}
    assert {name: (i.dtype, i.shape) for name, i in found.items()} == {
        tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors
    }
    for info in found.values():
        element = {"U8": 1, "BF16": 2, "F32": 4, "I64": 8}[info.dtype]
        assert info.offset % (64 if info.nbytes % 64 == 0 else element) == 0
    accepted_by_both(path)


def test_dtype_names() -> None:
    import torch

    assert dtype_name(torch.bfloat16) == "BF16"
    assert dtype_name("U8") == "U8"
    with pytest.raises(CheckpointError, match="complex64"):
        dtype_name(torch.complex64)
