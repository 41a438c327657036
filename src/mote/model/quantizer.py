"""The transformers plug-in: `quantization_config` with `quant_method: mote` builds the blocks before weights load.

Registered with transformers' quantiser registry, so that every Auto class, `pipeline`, `Trainer` and PEFT meet MoTE
checkpoints of any architecture without a model class of ours. A packed model stays flagged as quantised (adapters may
be trained on it); an upcycled one is an ordinary float model whose blocks quantise on the fly, so its flags are
cleared, because Trainer, FSDP and `.float()` treat a flagged model as frozen.
"""

from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mote.checkpoint.contract import QUANT_METHOD, MoteConfig
from mote.errors import UnsupportedModelError
from mote.model.block import freeze, install
from mote.model.guard import guard
from mote.model.linears import norms_before_routers


@register_quantization_config(QUANT_METHOD)
class MoteQuantizationConfig(QuantizationConfigMixin):
    """transformers' view of a `MoteConfig`: the same keys, as `config.quantization_config`."""

    def __init__(self, **plain: Any) -> None:
        self.quant_method = QUANT_METHOD
        self.contract = MoteConfig.from_dict(plain)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; the inverse of `from_dict`."""
        return self.contract.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """All keys: a default that changes later must not change a checkpoint's meaning."""
        return self.to_dict()


@register_quantizer(QUANT_METHOD)
class MoteQuantizer(HfQuantizer):
    """Builds blocks on the skeleton, then restores what loading loses."""

    requires_calibration = False

    def __init__(self, quantization_config: MoteQuantizationConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.contract = quantization_config.contract
        if not self.pre_quantized:
            raise UnsupportedModelError(
                "a dense checkpoint cannot become MoTE by passing quantization_config; use mote.upcycle"
            )

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        install(model, self.contract)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        finish(model, self.contract)
        return model

    def is_serializable(self) -> bool:
        """Both states save as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on a packed model, everything on an upcycled one."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Packed integers do not train."""
        return self.contract.state == "upcycled"


def finish(model: nn.Module, contract: MoteConfig) -> None:
    """Marks a model whose blocks have their weights: config to save, flags for other libraries, frozen parameters."""
    from transformers import PreTrainedModel

    config: Any = model.config
    config.quantization_config = MoteQuantizationConfig(**contract.to_dict())
    guard(config)
    packed = contract.state == "packed"
    if packed:
        model.hf_quantizer = MoteQuantizer(config.quantization_config)
        model.quantization_method = QUANT_METHOD  # type: ignore[assignment]
    else:
        for name in ("hf_quantizer", "quantization_method"):
            if name in vars(model):
                delattr(model, name)
    model.is_quantized = packed  # type: ignore[assignment]
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._is_quantized = packed
    freeze(model)
    if packed:
        model.requires_grad_(False)  # also where there is no block; adapters train on it
        norms_before_routers(model)
