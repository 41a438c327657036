"""csrc/mote.h in ctypes: structures, constants and signatures, name by name and in its order.

A structure holds addresses only: whoever fills one keeps the tensors behind them alive.
"""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from typing import Any

ABI = 3
"""The interface that this package speaks; MOTE_ABI of csrc/mote.h."""

FORMATS: dict[str, int] = {
    **{"2bit": 1, "base3": 2, "int4": 3, "int8": 4, "bf16": 5, "f32": 6},
    **{"int2": 7, "int3": 8, "int6": 9, "uint8": 10},
}
INTEGERS = ("int2", "int3", "int4", "int6", "int8", "uint8")
"""Formats with bf16 scales per group, whose activations have scales per group too."""
GRANULARITIES: dict[str, int] = {"tensor": 0, "row": 1, "group": 2}
COMBINES: dict[str, int] = {"add": 0, "convex": 1}
PARTS = ("norms", "projections", "attention", "router", "experts", "head")
"""What `mote_decoder_f32` adds nanoseconds to, in the order of MOTE_NORMS .. MOTE_PARTS."""

KV_TOKENS = 32
CANCELLED = 5


class Matrix(ctypes.Structure):
    """`mote_matrix`: one matrix [rows, cols], packed or row-major, with scales and bias."""

    _fields_ = (
        ("data", c_void_p),
        ("bytes", c_int64),
        ("scale", c_void_p),
        ("scales", c_int64),
        ("bias", c_void_p),
        ("rows", c_int64),
        ("cols", c_int64),
        ("group", c_int64),
        ("format", c_int32),
        ("granularity", c_int32),
        ("zero", c_void_p),
        ("zeros", c_int64),
    )


class Expert(ctypes.Structure):
    """`mote_expert`: gate and up [F, H], down [H, F]."""

    _fields_ = (("gate", Matrix), ("up", Matrix), ("down", Matrix))


class Ffn(ctypes.Structure):
    """`mote_ffn`: a shared expert, routed experts with their router fp32 [E, H], or both."""

    _fields_ = (
        ("shared", POINTER(Expert)),
        ("experts", POINTER(Expert)),
        ("router", c_void_p),
        ("num_experts", c_int32),
        ("top_k", c_int32),
        ("combine", c_int32),
        ("renormalize", c_int32),
    )


class Layer(ctypes.Structure):
    """`mote_layer`: norms fp32 [H], norms of heads fp32 [D] or NULL, projections, feed-forward network."""

    _fields_ = (
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("q", Matrix),
        ("k", Matrix),
        ("v", Matrix),
        ("o", Matrix),
        ("ffn", Ffn),
    )


class Decoder(ctypes.Structure):
    """`mote_decoder`: layers, final norm fp32 [H], head [V, H], rotary frequencies fp32 [D / 2]."""

    _fields_ = (
        ("layers", POINTER(Layer)),
        ("num_layers", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("final_norm", c_void_p),
        ("head", Matrix),
        ("inv_freq", c_void_p),
        ("rope_factor", c_float),
        ("eps", c_float),
        ("attention_scale", c_float),
        ("kv_format", c_int32),
    )


class Span(ctypes.Structure):
    """`mote_span`: new tokens of one sequence and the addresses of its key-value blocks."""

    _fields_ = (
        ("start", c_int64),
        ("tokens", c_int64),
        ("blocks", POINTER(c_void_p)),
        ("num_blocks", c_int64),
    )


_MATRIX = POINTER(Matrix)
_INPUT = (c_void_p, c_int64, c_int64)  # x, tokens, stride
_OUTPUT = (c_void_p, c_int64)  # y, stride

SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "mote_version": (c_char_p, []),
    "mote_last_error": (c_char_p, []),
    "mote_isa": (c_char_p, []),
    "mote_isas": (c_char_p, []),
    "mote_select_isa": (c_int32, [c_char_p]),
    "mote_packed_bytes": (c_int64, [c_int32, c_int64, c_int64, c_int64]),
    "mote_pack": (c_int32, [c_int32, c_int64, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64]),
    "mote_unpack": (c_int32, [_MATRIX, c_void_p, c_int64]),
    "mote_quantize_activation": (
        c_int32,
        [c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, c_void_p],
    ),
    "mote_matmul_i32": (c_int32, [_MATRIX, *_INPUT, *_OUTPUT, c_int32]),
    "mote_linear_f32": (c_int32, [_MATRIX, *_INPUT, *_OUTPUT, c_int32]),
    "mote_rows_f32": (c_int32, [_MATRIX, c_void_p, c_int64, *_OUTPUT]),
    "mote_ffn_f32": (c_int32, [POINTER(Ffn), *_INPUT, *_OUTPUT, c_void_p, c_void_p, c_int32]),
    "mote_kv_block_bytes": (c_int64, [POINTER(Decoder)]),
    "mote_decoder_f32": (
        c_int32,
        [
            *(POINTER(Decoder), c_void_p, POINTER(Span), c_int64),
            *(c_void_p, c_int64, c_void_p, c_void_p, c_void_p),
            *(c_void_p, c_void_p, c_int32),
        ],
    ),
}
