"""The kernels' functions in plain torch: the specification that every native kernel must equal bit for bit.

    acc[t, n] = sum_k w[n, k] x_q[t, k], exact in int32; scales as in `mote.ternary.linear.quantized_linear`

For bf16 and f32 weights it computes in fp64 and rounds once; there the kernels agree to a tolerance, and so they do in
`ffn`, where exponentials are torch's. Row-major and slow on purpose; it also runs where there is no native library, for
whoever asks for it by name.
"""

from typing import Any

import torch
from torch import Tensor

from mote.errors import FormatError
from mote.kernels.abi import INTEGERS
from mote.kernels.ffn import FeedForward, Mixed, StoredMatrix, SwiGlu
from mote.ternary.activations import quantize_activation, quantize_activation_grouped
from mote.ternary.codecs import CODECS
from mote.ternary.format import Granularity, WeightFormat
from mote.ternary.integers import IntegerWeight, PackedTensors, dequantize_integers, unpack_integers
from mote.ternary.linear import quantized_linear

__all__ = ["ffn", "linear", "matmul_i32", "pack", "packed_bytes", "quantize_activation", "rows", "unpack"]

DENSE: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "f32": torch.float32}


def packed_bytes(codec_name: str, rows: int, cols: int, group: int = 0) -> int:
    """Bytes that a matrix of [rows, cols] takes, padding included."""
    if codec_name in DENSE:
        return rows * cols * DENSE[codec_name].itemsize
    strips, k_groups, width = CODECS[codec_name].packed_shape(rows, cols, group)
    return strips * k_groups * width


def pack(q_NK: Tensor, codec_name: str, group: int = 0) -> Tensor:
    """int8 [N, K] of legal weights -> uint8 [S, KG, 256 or 768]."""
    return CODECS[codec_name].pack(q_NK, group)


def unpack(packed: Tensor, codec_name: str, rows: int, cols: int, group: int = 0) -> Tensor:
    """uint8 [S, KG, 256 or 768] -> int8 [N, K]."""
    return CODECS[codec_name].unpack(packed, rows, cols, group)


def matmul_i32(packed: Tensor, codec_name: str, rows: int, cols: int, x_q: Tensor, group: int = 0) -> Tensor:
    """x_q int8 [T, K] times the packed matrix, transposed -> the exact integers, int32 [T, N]."""
    q_NK = unpack(packed, codec_name, rows, cols, group)
    return (x_q.to(torch.int64) @ q_NK.to(torch.int64).t()).to(torch.int32)


def linear(
    packed: Tensor,
    scale: Tensor | None,
    codec_name: str,
    rows: int,
    cols: int,
    group: int,
    granularity: Granularity,
    x: Tensor,
    *,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """One linear map of fp32 x [T, K] -> fp32 [T, N]; arguments as in `mote.kernels.linear`."""
    x = x.to(torch.float32)
    if codec_name in DENSE:
        y_TN = (x.double() @ packed.view(rows, cols).double().t()).float()
    elif scale is None:
        raise FormatError(f"codec {codec_name}: a packed matrix has scales")
    else:
        fmt = _format(codec_name, granularity, group, zero)
        if codec_name in INTEGERS:
            weight = unpack_integers(PackedTensors(packed, scale, zero), rows, cols, fmt)
            x_q, s = quantize_activation_grouped(x, group)
            y_TN = quantized_linear(x_q, s, weight.q, weight.scale, fmt, weight.zero)
        else:
            x_q, s = quantize_activation(x)
            y_TN = quantized_linear(x_q, s, unpack(packed, codec_name, rows, cols, group), scale, fmt)
    return y_TN if bias is None else y_TN + bias


def ffn(layer: FeedForward, h: Tensor) -> Mixed:
    """h fp32 [T, H] through a whole feed-forward layer; as `mote.kernels.ffn`. Every expert sees every token."""
    tokens = h.shape[0]
    y_TH, kept = torch.zeros_like(h), torch.ones(tokens, 1)
    expert_Tk, gate_Tk = torch.empty(tokens, 0, dtype=torch.int64), torch.empty(tokens, 0)
    if layer.experts and layer.router is not None:
        logits_TE = (h.double() @ layer.router.double().t()).float()
        expert_Tk = torch.sort(logits_TE, dim=-1, descending=True, stable=True).indices[:, : layer.top_k]
        gate_Tk = logits_TE.softmax(-1).gather(1, expert_Tk)
        if layer.renormalize:
            gate_Tk = gate_Tk / gate_Tk.sum(-1, keepdim=True)
        outputs_ETH = torch.stack([_swiglu(expert, h) for expert in layer.experts])
        for expert_T, gate_T in zip(expert_Tk.t(), gate_Tk.t(), strict=True):
            y_TH = y_TH + gate_T[:, None] * outputs_ETH[expert_T, torch.arange(tokens)]
        if layer.combine == "convex":
            kept = 1 - gate_Tk.sum(-1, keepdim=True)
    if layer.shared is not None:
        y_TH = y_TH + kept * _swiglu(layer.shared, h)
    return Mixed(y_TH, expert_Tk.to(torch.int32), gate_Tk)


def _swiglu(expert: SwiGlu, h_TH: Tensor) -> Tensor:
    def through(w: StoredMatrix, x: Tensor) -> Tensor:
        return linear(*w[:-1], x, zero=w.zero)

    return through(expert.down, torch.nn.functional.silu(through(expert.gate, h_TH)) * through(expert.up, h_TH))


def rows(
    packed: Tensor,
    scale: Tensor | None,
    codec_name: str,
    num_rows: int,
    cols: int,
    group: int,
    index: Tensor,
    *,
    zero: Tensor | None = None,
) -> Tensor:
    """Rows `index` [n] of the matrix [num_rows, K], dequantised -> fp32 [n, K]."""
    if codec_name in DENSE or scale is None:
        return packed.view(num_rows, cols)[index].float()
    fmt = _format(codec_name, "group", group, zero)
    q_NK, scale_NG, zero_NG = unpack_integers(PackedTensors(packed, scale, zero), num_rows, cols, fmt)
    chosen = IntegerWeight(q_NK[index], scale_NG[index], None if zero_NG is None else zero_NG[index])
    return dequantize_integers(chosen, fmt)


def _format(codec_name: str, granularity: Granularity, group: int, zero: Tensor | None) -> WeightFormat:
    """The number format of a packed matrix."""
    if codec_name not in INTEGERS:
        return WeightFormat(granularity=granularity, group=group if granularity == "group" else 0)
    bits: Any = "int8" if codec_name == "uint8" else codec_name
    return WeightFormat(
        quantizer=bits,
        scale="absmax",
        granularity="group",
        group=group,
        activation="int8_group",
        symmetric=zero is None,
    )
