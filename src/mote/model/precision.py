"""Which device and which precision compute, and which tensors are fp32 whatever computes.

bf16 arithmetic pays where the hardware has it; a processor without bf16 instructions emulates it at a fifth of the
speed of fp32.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mote.checkpoint.environment import processor_has_bf16
from mote.errors import MoteError

Precision = Literal["auto", "bf16", "fp32"]


def device_of(name: str) -> torch.device:
    """The device of a setting. Raises MoteError for one that is not there."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MoteError(f"device={name!r}: {str(error).splitlines()[0]}; use auto or cpu") from None
    return device


def computes_in_bf16(device: torch.device, precision: Precision = "auto") -> bool:
    """Whether `precision` means bf16 on `device`: for "auto", where its instructions exist."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cpu":
        # Torch's own question is passed by AVX512 without the instructions too.
        return processor_has_bf16() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def autocast(device: torch.device, precision: Precision = "auto") -> AbstractContextManager[object]:
    """`torch.autocast` to bf16 where `computes_in_bf16`, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(device, precision))


def widen(model: nn.Module, precision: Precision = "auto") -> None:
    """Every parameter to fp32, exactly, unless `computes_in_bf16` on the model's device.

    Without autocast a model computes in the dtype of its weights, and those of most checkpoints are bf16.
    """
    if computes_in_bf16(next(model.parameters()).device, precision):
        return
    for parameter in model.parameters():
        parameter.data = parameter.data.float()


class KeepFloat32:
    """Mix-in before `nn.Module`: `.to(bfloat16)`, `.half()` and the like move this module's own tensors, not cast them.

    Router weights decide a discrete choice, master weights of routed experts must move at a learning rate of 2e-5 (a
    bf16 weight does not), and scales are fp32 in the format.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            if not tensor.is_floating_point() or new.dtype in (tensor.dtype, torch.float32):
                return new
            return tensor.to(device=new.device)

        return super()._apply(keep, recurse)  # type: ignore[misc]
