"""Vision towers: a transformers model, or DINOv2 recovered from an ONNX file.

In the ONNX export the biases kept their module names (`backbone.encoder.layer.0...bias`) while the matrices became
anonymous and transposed. Each is named through the bias of the Add that consumes its product.
"""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, Dinov2Config, Dinov2Model, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from mote.assemble.language import UNREADABLE, first_line
from mote.errors import UnsupportedModelError

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""DINOv2's preprocessing."""

# transformers 5 renamed the attention projections; old names load nothing and raise nothing with strict=False.
RENAMED = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
)
ABSENT_BY_DESIGN = {"embeddings.mask_token"}
"""Only used in masked pretraining, so no inference export has it."""


def load_tower(source: Path | str) -> PreTrainedModel:
    """The vision tower at `source`, fp32: an `.onnx` file with a DINOv2 backbone, or a transformers folder or hub id.

    Raises UnsupportedModelError if it cannot be read or is of a kind whose tokens we would misread.
    """
    if isinstance(source, Path) and source.suffix == ".onnx":
        return dinov2_from_onnx(source)
    try:
        model = AutoModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False, use_safetensors=True)
    except UNREADABLE as error:
        raise UnsupportedModelError(f"vision {source}: {first_line(error)}") from error
    # CLIP-like checkpoints hold two towers; only the one that sees is wanted.
    tower: PreTrainedModel = getattr(model, "vision_model", model)
    if not hasattr(tower.config, "patch_size"):
        raise UnsupportedModelError(f"vision {source}: {type(model).__name__} has no patches; looked for .patch_size")
    if getattr(tower.config, "num_register_tokens", 0):
        raise UnsupportedModelError(f"vision {source}: {type(model).__name__} has register tokens; use one without")
    return tower


def preprocessing(source: Path | str) -> dict[str, list[float]]:
    """image_mean and image_std that the tower at `source` was trained with; DINOv2's where it does not say."""
    stated: dict[str, Any] = {}
    if not (isinstance(source, Path) and source.is_file()):
        with contextlib.suppress(OSError):  # it brings no image processor
            stated, _ = ImageProcessingMixin.get_image_processor_dict(str(source))
    return {"image_mean": stated.get("image_mean", IMAGENET_MEAN), "image_std": stated.get("image_std", IMAGENET_STD)}


def dinov2_from_onnx(path: Path) -> Dinov2Model:
    """Rebuild `Dinov2Model` (fp32) from an ONNX export of a network with a DINOv2 backbone.

    Raises UnsupportedModelError if the file holds no such backbone or any weight of it stays unnamed.
    """
    weights = _named_weights(path)
    position = weights.get("embeddings.position_embeddings")
    projection = weights.get("embeddings.patch_embeddings.projection.weight")
    fc1 = weights.get("encoder.layer.0.mlp.fc1.bias")
    if position is None or projection is None or fc1 is None:
        raise UnsupportedModelError(
            f"{path.name}: no DINOv2 backbone (looked for patch and position embeddings and encoder.layer.0.mlp)"
        )
    hidden, patch = projection.shape[0], projection.shape[-1]
    layers = len({name.split(".")[2] for name in weights if name.startswith("encoder.layer.")})
    config = Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        mlp_ratio=fc1.numel() // hidden,
        patch_size=patch,
        image_size=patch * round((position.shape[1] - 1) ** 0.5),
    )
    model = Dinov2Model(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - ABSENT_BY_DESIGN:
        raise UnsupportedModelError(
            f"{path.name}: not a plain DINOv2: missing {sorted(set(missing) - ABSENT_BY_DESIGN)[:4]}, "
            f"unexpected {sorted(unexpected)[:4]}"
        )
    return model


def _named_weights(path: Path) -> dict[str, Tensor]:
    """The backbone's weights by their transformers names."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UnsupportedModelError(f"{path.name}: reading ONNX needs `pip install 'mote-lmm[demo]'`") from None

    try:
        graph = onnx.load(path).graph
    except Exception as error:  # protobuf's own classes, which onnx does not export
        raise UnsupportedModelError(f"{path}: not an ONNX file: {first_line(error)}") from error
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def value(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(stored[name]).copy())

    prefix = "backbone."
    weights = {name.removeprefix(prefix): value(name) for name in stored if name.startswith(prefix)}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    for node in graph.node:
        matrix = [name for name in node.input if name in stored]
        if node.op_type != "MatMul" or not matrix:
            continue
        biases = [
            name
            for consumer in consumers.get(node.output[0], [])
            if consumer.op_type == "Add"
            for name in consumer.input
            if name.startswith(prefix) and name.endswith(".bias")
        ]
        if biases:
            weights[biases[0].removeprefix(prefix).removesuffix("bias") + "weight"] = value(matrix[0]).T.contiguous()
    # The class token with its position, and the grid of positions, were folded into two anonymous constants.
    anonymous = [name for name in stored if not name.startswith(prefix)]
    hidden = weights["layernorm.bias"].numel() if "layernorm.bias" in weights else 0
    first = [name for name in anonymous if list(stored[name].dims) == [1, 1, hidden]]
    grid = [name for name in anonymous if len(stored[name].dims) == 3 and stored[name].dims[1] > 1]
    grid = [name for name in grid if stored[name].dims[0] == 1 and stored[name].dims[2] == hidden]
    if "embeddings.position_embeddings" not in weights and len(first) == 1 and len(grid) == 1:
        weights["embeddings.position_embeddings"] = torch.cat([value(first[0]), value(grid[0])], dim=1)
    return {_current_name(name): tensor for name, tensor in weights.items()}


def _current_name(name: str) -> str:
    for old, new in RENAMED:
        name = name.replace(old, new)
    return name
