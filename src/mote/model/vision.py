"""What the connector consumes and what it yields: the two halves of "see", split where features can be cached.

The vision tower is frozen in every stage, so its output for a picture is a constant; training, scoring and answering
cache it and run the connector only. Both functions do what the wrapped model's own `get_image_features` does.

Shapes: B pictures, P patches, D features of the tower, I image tokens, H hidden of the language model.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mote.errors import UnsupportedModelError
from mote.model.families import eyes


def vision_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """pixel_values [B, 3, height, width] to the connector's input [B, P, D], in the tower's dtype.

    Takes the hidden state that `config.vision_feature_layer` names and drops the class token where the config says so.
    Raises UnsupportedModelError for a model without a vision tower.
    """
    tower = eyes(model)[0]
    if tower is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no vision tower; looked for .vision_tower")
    config: Any = model.config
    dtype = next(tower.parameters()).dtype
    hidden_states = tower(pixel_values.to(dtype), output_hidden_states=True, return_dict=True).hidden_states
    layers = config.vision_feature_layer
    chosen = [hidden_states[i] for i in ([layers] if isinstance(layers, int) else layers)]
    if config.vision_feature_select_strategy == "default":
        chosen = [h_BPD[:, 1:] for h_BPD in chosen]
    return torch.cat(chosen, dim=-1)


def connect(model: nn.Module, features: Tensor) -> Tensor:
    """features [B, P, D] of any float dtype, on any device, through the connector to image tokens [B, I, H].

    Raises UnsupportedModelError for a model without a connector, or features of a size that it does not take.
    """
    connector = eyes(model)[1]
    if connector is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no connector; looked for .multi_modal_projector")
    weight = next(connector.parameters())
    try:
        out = connector(features.to(weight.device, weight.dtype))
    except RuntimeError as error:
        if "shape" not in str(error):  # of memory, say
            raise
        raise UnsupportedModelError(
            f"{tuple(features.shape)} features do not fit the connector; does the image size of processor_config.json "
            "fit this model?"
        ) from error
    return out.reshape(features.shape[0], -1, out.shape[-1])


def encoder_outputs(model: nn.Module, features: Tensor) -> dict[str, Any]:
    """features [B, P, D] through the connector, as the argument `mm_encoder_outputs` of the model's forward."""
    return shown(model, connect(model, features))


def shown(model: nn.Module, embeddings_BIH: Tensor) -> dict[str, Any]:
    """Image tokens [B, I, H] as the argument `mm_encoder_outputs` of the model's forward.

    Llava concatenates a list of pictures, AyaVision takes one tensor.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    embeddings: Any = embeddings_BIH
    if getattr(model.config, "model_type", "") == "llava":
        embeddings = list(embeddings)
    return {"image": BaseModelOutputWithPooling(pooler_output=embeddings)}
