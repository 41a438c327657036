"""The vision tower's file for llama.cpp ("mmproj"), where llama.cpp knows the tower: SigLIP with LLaVA's connector.

llama.cpp's graph `llava`, projector "mlp": patches, learned positions, pre-norm layers with GELU (tanh), the features
after layer `vision_feature_layer`, without the tower's last norm; then two matrices with GELU between. It applies the
tanh form of GELU in the connector too, from a table in fp16, where PyTorch has the exact one: embeddings agree to about
1e-3, and exactly in nothing. DINOv2 (the demo's tower) and connectors with a pixel shuffle (Aya, InternVL) have no
counterpart for these weights, and then the language model is exported alone.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mote.checkpoint.layout import plain_linears
from mote.errors import CheckpointError, UnsupportedModelError
from mote.export.decoder import Decoder
from mote.export.fit import Choices, write
from mote.export.ggml import TYPES, Bytes, GgmlType
from mote.export.matrices import Stored
from mote.export.stream import GgufFile, GgufTensor

_TOWER = re.compile(r"^(?P<prefix>(?:.*\.)?vision_tower\.(?:vision_model\.)?)embeddings\.patch_embedding\.weight$")
_CONNECTOR = re.compile(r"^(?P<prefix>(?:.*\.)?multi_modal_projector\.)linear_1\.weight$")
LAYER = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
"""Module in a layer of SigLIP -> in llama.cpp; each has a weight and a bias."""


def mmproj_path(out: Path) -> Path:
    """Where the tower of the model `out` goes, as llama.cpp's users name it."""
    return out.with_name(f"mmproj-{out.name}")


def why_no_vision(decoder: Decoder) -> str | None:
    """Why there is no mmproj, "" for a model without a vision tower, None when there is one."""
    config = decoder.config
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return ""
    if vision.model_type != "siglip_vision_model":
        return f"llama.cpp has no {vision.model_type} tower for these weights; the text model was exported alone"
    if config.model_type != "llava":
        return f"llama.cpp has no connector of {config.model_type} on this tower; the text model was exported alone"
    strategy, layer = config.vision_feature_select_strategy, config.vision_feature_layer
    if strategy != "full" or not isinstance(layer, int):
        return (
            f"features {strategy!r} of layer {layer!r}: llama.cpp takes all patches of one layer; the text model was "
            "exported alone"
        )
    if config.projector_hidden_act != "gelu" or vision.hidden_act not in ("gelu", "gelu_pytorch_tanh"):
        return (
            f"activations {vision.hidden_act!r} and {config.projector_hidden_act!r}; the text model was exported alone"
        )
    names = decoder.checkpoint.tensors
    if not any(map(_TOWER.match, names)) or not any(
        name.endswith("multi_modal_projector.linear_1.bias") for name in names
    ):
        return "the tensors are not called as SigLIP's and LLaVA's; the text model was exported alone"
    return None


def resizing_note(decoder: Decoder) -> str:
    """What an mmproj file does not settle."""
    size = decoder.config.vision_config.image_size
    return (
        "llama.cpp resizes pictures in its own way (bicubic, padded to a square): embeddings agree with ours for "
        f"pictures of {size} x {size} pixels"
    )


def plan_vision(decoder: Decoder, choices: Choices, path: Path) -> GgufFile:
    """The mmproj file of a model whose tower llama.cpp knows. Raises CheckpointError for a tensor or a preprocessing
    that is missing."""
    vision = decoder.config.vision_config
    layers = _feature_layer(int(decoder.config.vision_feature_layer), int(vision.num_hidden_layers))
    mean, deviation = _preprocessing(decoder, int(vision.image_size))

    def describe(writer: Any) -> None:
        writer.add_type("mmproj")
        writer.add_name(decoder.checkpoint.root.resolve().name)
        writer.add_clip_has_vision_encoder(True)
        writer.add_clip_projector_type("mlp")
        writer.add_vision_projection_dim(decoder.hidden)
        writer.add_vision_image_size(int(vision.image_size))
        writer.add_vision_patch_size(int(vision.patch_size))
        writer.add_vision_embedding_length(int(vision.hidden_size))
        writer.add_vision_feed_forward_length(int(vision.intermediate_size))
        writer.add_vision_block_count(layers)
        writer.add_array("clip.vision.feature_layer", [layers])
        writer.add_vision_head_count(int(vision.num_attention_heads))
        writer.add_vision_attention_layernorm_eps(float(vision.layer_norm_eps))
        writer.add_vision_image_mean(mean)
        writer.add_vision_image_std(deviation)
        writer.add_vision_use_gelu(True)

    tensors = [_tensor(decoder, choices, *pair) for pair in _names(decoder, layers)]
    return GgufFile(path=path, arch="clip", describe=describe, tensors=tensors)


def _names(decoder: Decoder, layers: int) -> Iterator[tuple[str, str]]:
    """(name in the checkpoint, name in llama.cpp) of every tensor."""
    names = decoder.checkpoint.tensors
    tower = next(match["prefix"] for match in map(_TOWER.match, names) if match)
    connector = next(match["prefix"] for match in map(_CONNECTOR.match, names) if match)
    for kind in ("weight", "bias"):
        yield f"{tower}embeddings.patch_embedding.{kind}", f"v.patch_embd.{kind}"
        yield f"{connector}linear_1.{kind}", f"mm.0.{kind}"
        yield f"{connector}linear_2.{kind}", f"mm.2.{kind}"
    yield f"{tower}embeddings.position_embedding.weight", "v.position_embd.weight"
    for layer in range(layers):
        for ours, theirs in LAYER.items():
            for kind in ("weight", "bias"):
                yield f"{tower}encoder.layers.{layer}.{ours}.{kind}", f"v.blk.{layer}.{theirs}.{kind}"


def _tensor(decoder: Decoder, choices: Choices, source: str, name: str) -> GgufTensor:
    packed = plain_linears(decoder.mote, decoder.checkpoint.tensors).get(source.removesuffix(".weight"))
    shape = (packed.rows, packed.cols) if packed else decoder.checkpoint.info(source).shape
    matrix = len(shape) == 2 and "position_embd" not in name
    if not matrix:
        return GgufTensor(name=name, shape=shape, type=TYPES["F32"], produce=partial(_floats, decoder, source))
    module = source.removesuffix(".weight")
    stored = decoder.matrices.stored(module, *shape)
    kind = choices.choose("vision", stored, name.removesuffix(".weight"))
    return GgufTensor(name=name, shape=shape, type=kind, produce=partial(_matrix, decoder, module, stored, kind))


def _floats(decoder: Decoder, source: str) -> Iterator[Bytes]:
    values = decoder.matrices.floats(source)
    yield write(values.reshape(-1, values.shape[-1]), TYPES["F32"])


def _matrix(decoder: Decoder, module: str, stored: Stored, kind: GgmlType) -> Iterator[Bytes]:
    yield write(decoder.matrices.read(module, stored), kind)


def _feature_layer(stated: int, layers: int) -> int:
    """How many layers run: transformers counts the states before, between and after them, or from the end."""
    return stated if stated >= 0 else layers + 1 + stated


def _preprocessing(decoder: Decoder, size: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of the pixels, from the processor's file. Raises CheckpointError when it lacks them,
    UnsupportedModelError for pictures of another size than the tower's, or another scale of pixels."""
    root = decoder.checkpoint.root
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = root / name
        if not path.is_file():
            continue
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            plain = plain.get("image_processor", plain)
            mean, deviation = [float(x) for x in plain["image_mean"]], [float(x) for x in plain["image_std"]]
            shown, factor = plain.get("size") or {}, float(plain.get("rescale_factor", 1 / 255))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: no preprocessing of pictures ({error!r}); fetch it again") from None
        sides = {int(shown[key]) for key in ("height", "width", "shortest_edge") if key in shown}
        if sides != {size} or not np.isclose(factor, 1 / 255):
            raise UnsupportedModelError(
                f"{path}: pictures of {sorted(sides)} pixels scaled by {factor:g}, the tower takes {size} and 1/255"
            )
        return mean, deviation
    raise CheckpointError(f"{root}: lacks processor_config.json, which says how pictures are prepared; fetch it again")
