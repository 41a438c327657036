"""Shapes of a model of any family that transformers knows: built on torch's meta device, which holds no numbers."""

from collections.abc import Mapping
from typing import Any

from mote.errors import PlanError


def outline(config: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter; a tied one is listed once, as in a file. Runs no code of a checkpoint's.

    Raises PlanError, naming `where`, for a family or a config that transformers cannot build.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config["model_type"]
    if kind not in CONFIG_MAPPING:
        raise PlanError(f"{where}: model_type {kind!r} is unknown to the installed transformers; nothing to plan with")
    auto: Any = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    plain = {key: value for key, value in config.items() if key not in ("auto_map", "attn_implementation")}
    try:
        with torch.device("meta"):
            model = auto.from_config(CONFIG_MAPPING[kind].from_dict(plain), trust_remote_code=False)
    except Exception as error:  # a config.json from a stranger can make transformers raise anything at all
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise PlanError(f"{where}: transformers cannot build this model: {reason}") from None
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
