"""One packed matrix, as a layout, as a function and as a module.

Forward: the activations go to int8 per token, the integers are multiplied exactly, and the result is scaled in fp32, by
the native kernel on a CPU and by the plain-torch reference elsewhere. Asking for "reference" by name works everywhere;
a native library that is missing is an error, never a slow success.

Backward passes the gradient straight through the activations' rounding, dx = (dy * scale) q, so that adapters (LoRA)
can be trained on a packed model; the packed matrix itself does not train.

Shapes: T tokens, N rows (outputs), K columns (inputs).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mote import kernels
from mote.checkpoint.contract import CodecName
from mote.checkpoint.layout import is_packable
from mote.errors import FormatError
from mote.kernels import reference
from mote.model.precision import KeepFloat32
from mote.ternary.activations import quantize_activation
from mote.ternary.codecs import CODECS
from mote.ternary.format import WeightFormat
from mote.ternary.quantize import dequantize_weight, quantize_weight

Backend = Literal["native", "reference"]


@dataclass(frozen=True, kw_only=True)
class PackedMatrix:
    """Layout of a packed matrix: what its bytes cannot say themselves.

    Raises FormatError for a grid or activation that the packed formats do not hold.
    """

    rows: int
    cols: int
    format: WeightFormat
    codec: CodecName

    def __post_init__(self) -> None:
        if not packable(self.format):
            raise FormatError(
                f"codec {self.codec}: cannot hold {self.format.quantizer} weights with "
                f"{self.format.activation} "
                "activations; pack ternary or binary weights with int8 activations"
            )

    def pack(self, q: Tensor) -> Tensor:
        """int8 [..., N, K] to uint8 [..., S, KG, 256]."""
        return CODECS[self.codec].pack(q, self.format.group)

    def unpack(self, packed: Tensor) -> Tensor:
        """uint8 [..., S, KG, 256] to int8 [..., N, K]."""
        return CODECS[self.codec].unpack(packed, self.rows, self.cols, self.format.group)


def packable(fmt: WeightFormat) -> bool:
    """Whether the packed formats hold this grid: values -1, 0, 1 against int8 activations."""
    return is_packable(fmt) and fmt.activation == "int8"


def packed_linear(
    x_TK: Tensor, packed: Tensor, scale: Tensor, layout: PackedMatrix, backend: Backend = "native"
) -> Tensor:
    """fp32 [T, N] of fp32 [T, K] times one packed matrix, with a gradient for x_TK where one is wanted."""
    y_TN: Tensor = _PackedLinear.apply(x_TK, packed, scale, layout, backend)  # type: ignore[no-untyped-call]
    return y_TN


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TK: Tensor, packed: Tensor, scale: Tensor, layout: PackedMatrix, backend: Backend
    ) -> Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.layout = layout
        x_q, s = quantize_activation(x_TK.float())
        native = backend == "native" and x_TK.device.type == "cpu"
        linear: Callable[..., Tensor] = kernels.ternary_linear if native else reference.ternary_linear
        fmt = layout.format
        return linear(packed, scale, layout.codec, layout.rows, layout.cols, fmt.group, fmt.granularity, x_q, s)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        packed, scale = ctx.saved_tensors
        w_NK = dequantize_weight(ctx.layout.unpack(packed), scale, ctx.layout.format)
        return grads[0].float() @ w_NK, None, None, None, None


class PackedLinear(KeepFloat32, nn.Module):
    """A packed matrix in the place of an `nn.Linear`: buffers `packed` uint8 [S, KG, 256] and `scale` fp32.

    Takes any float dtype [..., K], returns fp32 [..., N].
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, layout: PackedMatrix, scale_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layout = layout
        self.in_features, self.out_features = layout.cols, layout.rows
        self.backend: Backend = "native"
        shape = CODECS[layout.codec].packed_shape(layout.rows, layout.cols, layout.format.group)
        self.register_buffer("packed", torch.zeros(shape, dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(scale_shape, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to fp32 [..., N]."""
        flat = x.float().reshape(-1, self.layout.cols)
        return packed_linear(flat, self.packed, self.scale, self.layout, self.backend).view(*x.shape[:-1], -1)

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Quantises and packs a float matrix [N, K] into the buffers."""
        q, scale = quantize_weight(weight, self.layout.format)
        self.packed.copy_(self.layout.pack(q))
        self.scale.copy_(scale)


def use_backend(model: nn.Module, backend: Backend) -> None:
    """Chooses, for every packed module of a model, the native kernels or the plain-torch reference."""
    if backend not in ("native", "reference"):
        raise FormatError(f"backend {backend!r} is unknown; use 'native' or 'reference'")
    for module in model.modules():
        if isinstance(getattr(module, "backend", None), str) and hasattr(module, "forward"):
            module.backend = backend  # type: ignore[assignment]
