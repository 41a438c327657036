"""Packed formats: golden bytes, a byte-by-byte reference, round trips at awkward shapes, and damage."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mote.errors import FormatError
from mote.ternary.codecs import CODECS, Codec, scales_from_strips, scales_to_strips

GOLDEN = {
    # sha256 of the packed bytes of golden_weights(70, 45), without scale groups and with groups of 16 inputs
    "base3": (
        "abec28aacc994217ca11cb09aa38fbd853878eef047a739720cdf97da1030569",
        "1558b408dd5995c6b071035005a8786ac1df8d05a08509fdac7e5d47463ac977",
    ),
    "2bit": ("36715d389b0516ca0bac993bf7b8014b2ae86f69b6a1499b579d5d0db6563e35",)
    * 2,  # a scale group is whole k-groups, so it moves nothing
    # of golden_weights(70, 45, codec) with groups of 16 (int3: 32) and 64 inputs: whole k-groups again
    "int4": ("ae44e9f6417f6ecd5f80f3affd39746a18cddbc135b13ac0e29333decf5cc83a",) * 2,
    "int2": ("45aa33425d389f77b53a3794a69921b579d5b9b99cf901a6339e435b614cd259",) * 2,
    "int3": ("0ec424dca1ea19aedd135d5750c2a0c4e85e5cc49c69e96187c4c1106733dac4",) * 2,
    "int8": ("1d033e3d8ff3ad8738ce66cef026e5074145718a9c9fe0dc6aca656a25f03b0e",) * 2,
    "int6": ("c834bdfd46173d69097874300c66ce28a3245dc863fecc59a8b27f544dbef1b3",) * 2,
    "uint8": ("8a5d81d40b4139f08931aedbf92b525099834c85c97fc0ab1b5f90f3fc4b72cc",) * 2,
}
RADIX = {"base3": 3, "2bit": 4, "int2": 4, "int4": 16, "int8": 256, "uint8": 256}
CUT = {"int3": 2, "int6": 4}
"""Codecs that cut digits into bits: how many lie in the first two of three blocks."""
TERNARY = ("2bit", "base3")


def some_group(codec: Codec, like: int = 16) -> int:
    """No scale groups where they are optional; otherwise groups of `like` inputs, or a few more where they must."""
    return -(-like // codec.group_multiple) * codec.group_multiple if codec.max_group else 0


def golden_weights(rows: int, cols: int, codec: Codec | None = None) -> torch.Tensor:
    n, k = torch.arange(rows)[:, None], torch.arange(cols)[None, :]
    if codec is None or codec.low == -1:
        return ((n * n + 3 * k * n + k * k * k) % 7 % 3 - 1).to(torch.int8)
    return ((n * n + 3 * k * n + k * k * k) % 257 % (codec.high - codec.low + 1) + codec.low).to(torch.int8)


def byte_by_byte(codec: Codec, q: torch.Tensor, group: int) -> torch.Tensor:
    """The format as its documentation words it, one digit at a time."""
    rows, cols = q.shape
    packed = torch.zeros(codec.packed_shape(rows, cols, group), dtype=torch.int64)
    strips, k_groups, _ = packed.shape
    width = group or cols
    stored = -(-width // codec.k_per_group) * codec.k_per_group
    digits = torch.full((64 * strips, k_groups * codec.k_per_group), codec.offset)
    for k in range(cols):
        digits[:rows, k // width * stored + k % width] += q[:, k]
    for n in range(64 * strips):
        for k in range(digits.shape[1]):
            for place, part in parts(codec, n, k, int(digits[n, k])):
                packed[place] += part
    return packed.to(torch.uint8)


def parts(codec: Codec, n: int, k: int, digit: int) -> list[tuple[tuple[int, int, int], int]]:
    """Where in the packed matrix the digit of row n and stored input k goes, and what it adds to the bytes there."""
    p, byte = k % codec.k_per_group // 4, n % 64 // 16 * 64 + n % 16 * 4 + k % 4
    strip, k_group = n // 64, k // codec.k_per_group
    if codec.name not in CUT:
        return [((strip, k_group, byte), digit * RADIX[codec.name] ** p)]
    bits = CUT[codec.name]
    places = 8 // bits  # digits whose low bits share a byte
    low, top = digit % 2**bits, digit // 2**bits
    return [
        ((strip, k_group, p // places * 256 + byte), low << p % places * bits),
        ((strip, k_group, 512 + byte), top << p * bits // 2),
    ]


@pytest.fixture(params=sorted(CODECS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]


def test_registry_names_and_sizes() -> None:
    assert {name: (c.name, c.k_per_group, c.bits_per_weight) for name, c in CODECS.items()} == {
        "base3": ("base3", 20, 1.6),
        "2bit": ("2bit", 16, 2.0),
        "int2": ("int2", 16, 2.0),
        "int3": ("int3", 32, 3.0),
        "int4": ("int4", 8, 4.0),
        "int6": ("int6", 16, 6.0),
        "int8": ("int8", 4, 8.0),
        "uint8": ("uint8", 4, 8.0),
    }


def test_single_weights_are_pinned() -> None:
    """The bytes that the documentation prints."""
    for name, padding, minus, plus in (("2bit", 0x55, 0x54, 0x56), ("base3", 0x79, 0x78, 0x7A)):
        for weight, first in ((-1, minus), (0, padding), (1, plus)):
            packed = CODECS[name].pack(torch.tensor([[weight]], dtype=torch.int8))
            assert packed.shape == (1, 1, 256)
            assert packed.flatten().tolist() == [first] + [padding] * 255
    for name, padding, firsts in (
        ("int4", 0x88, {-8: 0x80, -7: 0x81, 0: 0x88, 7: 0x8F}),
        ("int8", 0x80, {-127: 0x01, -1: 0x7F, 0: 0x80, 127: 0xFF}),
    ):
        for weight, first in firsts.items():
            packed = CODECS[name].pack(torch.tensor([[weight]], dtype=torch.int8), 32)
            assert packed.shape == (1, 1, 256)
            assert packed.flatten().tolist() == [first] + [padding] * 255


def test_position_of_one_weight(codec: Codec) -> None:
    group = some_group(codec)
    zeros = codec.pack(torch.zeros(130, 50, dtype=torch.int8), group).int()
    for n, k in ((0, 1), (0, 4), (1, 0), (16, 0), (63, 15), (64, 16), (129, 49)):
        q = torch.zeros(130, 50, dtype=torch.int8)
        q[n, k] = 1
        difference = codec.pack(q, group).int() - zeros
        places, steps = zip(*(part for part in parts(codec, n, k, 1) if part[1]), strict=True)
        assert difference.nonzero().tolist() == [list(place) for place in places]
        assert [difference[place].item() for place in places] == list(steps)


@pytest.mark.parametrize(
    ("rows", "cols", "group"), [(1, 1, 0), (70, 45, 0), (64, 16, 0), (65, 20, 0), (70, 45, 16), (3, 33, 32)]
)
def test_bytes_are_those_of_the_specification(codec: Codec, rows: int, cols: int, group: int) -> None:
    group = some_group(codec, group or 16) or group
    q = golden_weights(rows, cols, codec)
    assert torch.equal(codec.pack(q, group), byte_by_byte(codec, q, group))


def test_golden_bytes(codec: Codec) -> None:
    groups = (some_group(codec), 64) if codec.max_group else (0, 16)
    q = golden_weights(70, 45, codec)
    digests = [hashlib.sha256(codec.pack(q, group).numpy().tobytes()).hexdigest() for group in groups]
    assert tuple(digests) == GOLDEN[codec.name]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CODECS)),
    rows=st.integers(1, 140),
    cols=st.integers(1, 90),
    group=st.sampled_from([0, 16, 32, 48, 64, 128]),
    experts=st.sampled_from([(), (1,), (3,), (2, 2)]),
    seed=st.integers(0, 999),
)
def test_round_trip(name: str, rows: int, cols: int, group: int, experts: tuple[int, ...], seed: int) -> None:
    codec = CODECS[name]
    group = some_group(codec, group or 16) or group
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(codec.low, codec.high + 1, (*experts, rows, cols), dtype=torch.int8, generator=generator)
    packed = codec.pack(q, group)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*experts, *codec.packed_shape(rows, cols, group))
    assert packed.is_contiguous()
    codec.check(packed, rows, cols, group)
    assert torch.equal(codec.unpack(packed, rows, cols, group), q)


@settings(max_examples=20, deadline=None)
@given(group=st.integers(1, 70), cols=st.integers(1, 150))
def test_base3_holds_any_group(group: int, cols: int) -> None:
    q = golden_weights(3, cols)
    packed = CODECS["base3"].pack(q, group)
    assert torch.equal(CODECS["base3"].unpack(packed, 3, cols, group), q)


def test_strided_weights_pack_alike(codec: Codec) -> None:
    q = golden_weights(50, 70, codec).t()
    assert torch.equal(codec.pack(q, some_group(codec)), codec.pack(q.contiguous(), some_group(codec)))


@pytest.mark.parametrize(
    ("name", "illegal"), [("base3", range(243, 256)), ("2bit", (3, 12, 48, 192, 255, 0xD5)), ("int8", range(1))]
)
def test_illegal_digits_are_found(name: str, illegal: range) -> None:
    codec = CODECS[name]
    group = some_group(codec)
    good = codec.pack(golden_weights(64, codec.k_per_group, codec)[None].expand(2, -1, -1), group)
    codec.check(good, 64, codec.k_per_group, group)
    for byte in illegal:
        bad = good.clone()
        bad[1, 0, 0, 77] = byte
        with pytest.raises(FormatError, match="illegal digit"):
            codec.check(bad, 64, codec.k_per_group, group)


@pytest.mark.parametrize(("rows", "cols", "group"), [(63, 80, 0), (64, 79, 0), (64, 90, 48)])
def test_padding_must_be_weight_zero(codec: Codec, rows: int, cols: int, group: int) -> None:
    group = some_group(codec, group or 16) or group
    packed = codec.pack(torch.zeros(rows, cols, dtype=torch.int8), group)
    stored = torch.zeros(64, packed.shape[1] * codec.k_per_group, dtype=torch.int8)
    ones = codec.pack(stored + 1, group if codec.max_group else 0)
    codec.check(packed, rows, cols, group)
    damaged = torch.where(
        torch.arange(codec.k_group_bytes) % 256 >= 252, ones, packed
    )  # the last row, padding columns included
    if group == 48:
        damaged = packed.clone()
        damaged[0, -1] = ones[0, -1]
    with pytest.raises(FormatError, match="padding"):
        codec.check(damaged, rows, cols, group)


def test_wrong_shapes_and_types_are_refused(codec: Codec) -> None:
    group = some_group(codec)
    packed = codec.pack(golden_weights(64, 100), group)
    for wrong in (packed[:, :-1], packed[..., :-1], packed.to(torch.int32), packed[0]):
        with pytest.raises(FormatError, match="is uint8"):
            codec.unpack(wrong, 64, 100, group)
        with pytest.raises(FormatError, match="is uint8"):
            codec.check(wrong, 64, 100, group)
    with pytest.raises(FormatError, match="is uint8"):
        codec.unpack(packed, 65, 100, group)
    for rows, cols, group in ((0, 4, 0), (4, 0, 0), (4, 4, -16)):
        with pytest.raises(FormatError, match="cannot pack"):
            codec.packed_shape(rows, cols, group)


@pytest.mark.parametrize(
    ("names", "illegal", "message"),
    [
        (TERNARY, (-128, -2, 2, 127), "not -1, 0 or 1"),
        (("int4",), (-128, -9, 8, 127), "not in -8..7"),
        (("int8",), (-128,), "not in -127..127"),
        (("int2",), (-128, -3, 2, 127), "not in -2..1"),
        (("int3",), (-128, -5, 4, 127), "not in -4..3"),
        (("int6",), (-128, -33, 32, 127), "not in -32..31"),
    ],
)
def test_weights_out_of_range_are_refused(names: tuple[str, ...], illegal: tuple[int, ...], message: str) -> None:
    for name in names:
        for value in illegal:
            with pytest.raises(FormatError, match=message):
                CODECS[name].pack(torch.tensor([[0, value]], dtype=torch.int8), some_group(CODECS[name]))


def test_what_is_no_matrix_of_int8_is_refused(codec: Codec) -> None:
    with pytest.raises(FormatError, match="takes int8"):
        codec.pack(torch.zeros(2, 2))
    with pytest.raises(FormatError, match="takes int8"):
        codec.pack(torch.zeros(2, dtype=torch.int8))


def test_two_bit_groups_start_on_a_k_group() -> None:
    with pytest.raises(FormatError, match="group=24 is not a multiple of 16"):
        CODECS["2bit"].packed_shape(4, 48, 24)
    assert CODECS["base3"].packed_shape(4, 48, 24) == (1, 4, 256)


@pytest.mark.parametrize(
    ("name", "multiple"), [("int2", 16), ("int3", 32), ("int4", 8), ("int6", 16), ("int8", 4), ("uint8", 4)]
)
def test_scaled_formats_always_have_groups(name: str, multiple: int) -> None:
    codec = CODECS[name]
    for group in (0, 1024 + multiple):
        with pytest.raises(FormatError, match=rf"group={group} is out of range; use scale groups of 1 to 1024"):
            codec.packed_shape(4, 48, group)
    with pytest.raises(FormatError, match=rf"not a multiple of {multiple}"):
        codec.packed_shape(4, 48, multiple + 2)
    assert codec.packed_shape(65, 64, 1024) == (2, 64 // codec.k_per_group, codec.k_group_bytes)


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (64, 3), (70, 5)])
@pytest.mark.parametrize("experts", [(), (2, 3)])
def test_scales_lie_strip_after_strip(rows: int, groups: int, experts: tuple[int, ...]) -> None:
    scale = torch.rand(*experts, rows, groups) + 1
    stored = scales_to_strips(scale)
    assert stored.dtype == torch.bfloat16
    assert stored.shape == (*experts, -(-rows // 64), groups, 64)
    assert stored.is_contiguous()
    assert torch.equal(stored[..., (rows - 1) // 64, groups - 1, (rows - 1) % 64], scale[..., -1, -1].bfloat16())
    assert int((stored == 0).sum()) == (-rows % 64) * groups * scale[..., 0, 0].numel()
    assert torch.equal(scales_from_strips(stored, rows), scale.bfloat16().float())
