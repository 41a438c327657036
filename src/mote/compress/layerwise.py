"""A model run one decoder layer at a time: what the first one reads, what each makes of it, and what is let go of.

Shape suffixes: B conversations, T tokens, H hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mote.compress.calibration import Batch
from mote.model.experts import FloatExperts
from mote.model.vision import encoder_outputs

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a layer beside the hidden states: masks, positions."""


def enter(model: Any, layers: Any, batches: Sequence[Batch]) -> tuple[list[Tensor], list[list[Call]]]:
    """What the first layer reads, fp32 [B, T, H] per batch, and for each layer the other arguments of each batch."""
    hidden: list[Tensor] = []
    calls: list[list[Call]] = [[] for _ in layers]

    def stand_in(index: int) -> Callable[..., Tensor]:
        def forward(h_BTH: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            calls[index].append((args, kwargs))
            if index == 0:
                hidden.append(h_BTH.detach().float())
            return h_BTH

        return forward

    for index, layer in enumerate(layers):
        layer.forward = stand_in(index)
    try:
        for batch in batches:
            extra = {} if batch.features is None else {"mm_encoder_outputs": encoder_outputs(model, batch.features)}
            mask = torch.ones_like(batch.ids)
            model(input_ids=batch.ids, attention_mask=mask, use_cache=False, logits_to_keep=1, **extra)
    finally:
        for layer in layers:
            del layer.forward
    return hidden, calls


def through(layer: nn.Module, hidden: Sequence[Tensor], calls: Sequence[Call]) -> Iterator[Tensor]:
    """What the layer gives for each batch, one after the other."""
    for h_BTH, (args, kwargs) in zip(hidden, calls, strict=True):
        out = layer(h_BTH, *args, **kwargs)
        yield out[0] if isinstance(out, tuple) else out


def let_go(layer: nn.Module) -> None:
    """Gives back the memory of a layer's weights, after which it is of no use."""
    for parameter in layer.parameters():
        parameter.data = parameter.data.new_empty(0)
    if isinstance(experts := getattr(layer.mlp, "experts", None), FloatExperts):
        experts.forget()
