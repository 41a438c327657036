"""One packed matrix, as a layout, as a function and as a module.

Forward: the activations go to int8 (ternary weights: one scale per token; integer ones: per token and group of
inputs), the integers are multiplied exactly, and the result is scaled in fp32, by the native kernel on a CPU and by the
plain-torch reference elsewhere. Asking for "reference" by name works everywhere; a native library that is missing is an
error, never a slow success.

Backward passes the gradient straight through the activations' rounding, dx = dy W, so that adapters (LoRA) can be
trained on a packed model; the packed matrix itself does not train.

Shapes: T tokens, N rows (outputs), K columns (inputs).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mote import kernels
from mote.checkpoint.layout import is_ternary, scale_shape
from mote.errors import FormatError
from mote.kernels import reference
from mote.ternary.codecs import CODECS
from mote.ternary.format import WeightFormat, integer_codec
from mote.ternary.integers import PackedTensors, dequantize_integers, pack_integers, unpack_integers
from mote.ternary.quantize import dequantize_weight, quantize_weight
from mote.ternary.round_to_nearest import round_to_nearest

Backend = Literal["native", "reference"]


@dataclass(frozen=True, kw_only=True)
class PackedMatrix:
    """Layout of a packed matrix: what its bytes cannot say themselves; codec: key in `mote.ternary.codecs`.

    Raises FormatError for a grid or activation that the codec does not hold.
    """

    rows: int
    cols: int
    format: WeightFormat
    codec: str

    def __post_init__(self) -> None:
        if not packable(self.format) or self.codec != (integer_codec(self.format) or self.codec):
            raise FormatError(
                f"codec {self.codec}: cannot hold {self.format.quantizer} weights with "
                f"{self.format.activation} "
                "activations; pack ternary or binary weights with int8 activations"
            )

    def pack(self, q: Tensor) -> Tensor:
        """int8 [..., N, K] to uint8 [..., S, KG, 256 or 768]."""
        return CODECS[self.codec].pack(q, self.format.group)

    def unpack(self, packed: Tensor) -> Tensor:
        """uint8 [..., S, KG, 256 or 768] to int8 [..., N, K]."""
        return CODECS[self.codec].unpack(packed, self.rows, self.cols, self.format.group)

    def encode(self, weight: Tensor) -> PackedTensors:
        """Float [N, K] to tensors as they are stored: nearest integers, where not ternary. Raises FormatError for NaN
        and Inf, and for "given" scales, which are whose integers are given as well (`pack_linear`)."""
        if integer_codec(self.format):
            return pack_integers(round_to_nearest(weight, self.format), self.format)
        q, scale = quantize_weight(weight, self.format)
        return PackedTensors(self.pack(q), scale)

    def decode(self, packed: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        """The inverse of `encode` but for the rounding: fp32 [N, K]."""
        if integer_codec(self.format):
            tensors = PackedTensors(packed, scale, zero)
            return dequantize_integers(unpack_integers(tensors, self.rows, self.cols, self.format), self.format)
        return dequantize_weight(self.unpack(packed), scale, self.format)

    def empty(self, *stack: int) -> PackedTensors:
        """Zeros in dtype and shape of what `encode` gives, or of a stack of that, on the current default device."""
        shape = CODECS[self.codec].packed_shape(self.rows, self.cols, self.format.group)
        dtype = torch.bfloat16 if integer_codec(self.format) else torch.float32
        scales = (*stack, *scale_shape(self.format, self.rows, self.cols))
        packed, scale = torch.zeros((*stack, *shape), dtype=torch.uint8), torch.zeros(scales, dtype=dtype)
        return PackedTensors(packed, scale, None if self.format.symmetric else torch.zeros(scales, dtype=dtype))


def packable(fmt: WeightFormat) -> bool:
    """Whether a codec holds this grid: -1, 0, 1 against int8 activations, or an integer codec's format."""
    return (is_ternary(fmt) and fmt.activation == "int8") or integer_codec(fmt) is not None


def packed_linear(
    x_TK: Tensor,
    weight: PackedTensors,
    layout: PackedMatrix,
    backend: Backend = "native",
    bias: Tensor | None = None,
) -> Tensor:
    """fp32 [T, N] of [T, K] times one packed matrix plus a bias [N], with a gradient for x_TK where one is wanted."""
    args = (x_TK, *weight, bias, layout, backend)
    y_TN: Tensor = _PackedLinear.apply(*args)  # type: ignore[no-untyped-call]
    return y_TN


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TK: Tensor,
        packed: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        bias: Tensor | None,
        layout: PackedMatrix,
        backend: Backend,
    ) -> Tensor:
        ctx.save_for_backward(packed, scale, zero)
        ctx.layout = layout
        native = backend == "native" and x_TK.device.type == "cpu"
        linear: Callable[..., Tensor] = kernels.linear if native else reference.linear
        fmt = layout.format
        sizes = (layout.codec, layout.rows, layout.cols, fmt.group, fmt.granularity)
        bias = None if bias is None else bias.detach().float()
        return linear(packed, scale, *sizes, x_TK.detach().float(), zero=zero, bias=bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        return grads[0].float() @ ctx.layout.decode(*ctx.saved_tensors), None, None, None, None, None, None


class PackedLinear(nn.Module):
    """A packed matrix in the place of an `nn.Linear`: buffers `packed` uint8 [S, KG, 256 or 768], `scale`, and `zero`
    where the grid is not symmetric; maybe a `bias`.

    Takes any float dtype [..., K]. A ternary matrix returns fp32 [..., N], an integer one the dtype it was given.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, layout: PackedMatrix, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.layout = layout
        self.in_features, self.out_features = layout.cols, layout.rows
        self.backend: Backend = "native"
        register(self, layout.empty())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        flat = x.reshape(-1, self.layout.cols)
        weight = PackedTensors(self.packed, self.scale, self.zero)
        y = packed_linear(flat, weight, self.layout, self.backend, self.bias)
        return (y.to(x.dtype) if integer_codec(self.layout.format) else y).view(*x.shape[:-1], self.layout.rows)

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Quantises and packs a float matrix [N, K] into the buffers."""
        fill(self, self.layout.encode(weight))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return keep_scales(self, super()._apply, fn, recurse)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.in_features}, {self.out_features}, codec={self.layout.codec}, bias={self.bias is not None}"


def register(module: nn.Module, tensors: PackedTensors, prefix: str = "") -> None:
    """Makes buffers of the tensors, under their names; the zero points of a symmetric grid are None."""
    for name, tensor in tensors._asdict().items():
        module.register_buffer(f"{prefix}{name}", tensor)


def fill(module: nn.Module, tensors: PackedTensors, prefix: str = "") -> None:
    """Copies the tensors into the buffers that `register` made."""
    for name, tensor in tensors._asdict().items():
        if tensor is not None:
            getattr(module, f"{prefix}{name}").copy_(tensor)


def keep_scales(module: Any, apply: Callable[..., Any], fn: Callable[[Tensor], Tensor], recurse: bool) -> Any:
    """`nn.Module._apply` for a module whose buffers move between devices but keep their dtypes, which are the format's:
    `.to(bfloat16)` would lose digits of an fp32 scale, `.float()` make a bf16 one what no kernel reads."""
    before = dict(module._buffers)
    applied = apply(fn, recurse)
    for name, buffer in before.items():
        if buffer is not None and module._buffers[name].dtype != buffer.dtype:
            module._buffers[name] = buffer.to(module._buffers[name].device)
    return applied


def use_backend(model: nn.Module, backend: Backend) -> None:
    """Chooses, for every packed module of a model, the native kernels or the plain-torch reference."""
    if backend not in ("native", "reference"):
        raise FormatError(f"backend {backend!r} is unknown; use 'native' or 'reference'")
    for module in model.modules():
        if isinstance(getattr(module, "backend", None), str) and hasattr(module, "forward"):
            module.backend = backend  # type: ignore[assignment]
