"""The dense model that a plan starts from: names, shapes and dtypes of its tensors, wherever they can be read without
weights.

In this order: a name of the table of known models; a checkpoint folder whose files say it in their headers; a
config.json, by the tables of `tensors`, or else by transformers, which builds the model without memory (seconds, since
it imports torch). A hub id is left to transformers' own cache and download.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mote.checkpoint.accounting import component_of
from mote.checkpoint.contract import QUANT_METHOD, MoteConfig
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.layout import decoder_prefixes
from mote.checkpoint.planned import with_sizes
from mote.checkpoint.shards import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, Checkpoint
from mote.errors import MoteError, PlanError
from mote.plan import known
from mote.plan.tensors import shapes

LARGEST = 1 << 31
"""Of any size in a config, so that a damaged one is an error and not a long wait."""
MOST_LAYERS = 4096
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "auto": "BF16"}
_PICTURES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A dense model without weights.

    name: for titles. source: where its shapes were read. tensors: in the order of a file. hidden_size, ffn_size,
    layers: H, F, L. image_tokens: of one picture, 0 without eyes or where the model takes any size and none was said.
    positions: the longest text, 0 if not stated. model_type: of the language model. config: the whole config.json, that
    of an up-cycled model's base.
    """

    name: str
    source: str
    tensors: tuple[PlannedTensor, ...]
    hidden_size: int
    ffn_size: int
    layers: int
    image_tokens: int = 0
    positions: int = 0
    model_type: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def eyes(self) -> bool:
        """Whether it has a vision tower."""
        return any(component_of(tensor.name) == "vision_tower" for tensor in self.tensors)


def open_skeleton(model: str, *, vision: str | None = None, image_size: int = 0) -> Skeleton:
    """The skeleton of a known name, the path of a config.json or of a checkpoint folder, or a hub id with a "/".

    vision: a known tower that is joined to a language model, "none" for the language model alone. image_size: side of a
    picture in pixels, 0 for what the model's files say. Raises PlanError, or CheckpointError for a damaged folder.
    """
    path = Path(model)
    if path.exists():
        return _of_path(path, vision, image_size)
    if model.lower() in known.table("models"):
        config = known.model_config(model.lower(), vision)
        return of_config(config, model.lower(), "the table of known models", image_size=image_size)
    if "/" in model and not model.startswith((".", "/", "~")) and model.count("/") == 1:
        return _of_config_file(_from_hub(model), model, vision, image_size)
    if "/" in model or model.endswith(".json"):
        raise PlanError(f"{model}: no such file or folder; give a config.json, a checkpoint, or a known name")
    known.row("models", model, "model", "or give the path of a config.json or a checkpoint")
    raise AssertionError(model)


def of_config(config: Mapping[str, Any], name: str, source: str, *, image_size: int = 0, where: str = "") -> Skeleton:
    """The skeleton that a config.json describes. where: names the file in errors."""
    where = where or name
    _check(config, where)
    found = shapes(config)
    if found is None:
        from mote.plan.outline import outline

        found, source = outline(config, where), f"{source}, built by transformers without memory"
    kept = _dtype(config, where)
    tensors = tuple(PlannedTensor(tensor, kept, shape) for tensor, shape in found.items())
    return _skeleton(tensors, config, name, source, image_size, where)


def image_tokens(config: Mapping[str, Any], image_size: int = 0) -> int:
    """Tokens of one picture of `image_size` pixels (0: as the config says) as llava, aya_vision and Qwen2-VL count
    them, and by `image_seq_length` or `mm_tokens_per_image` in a config of another kind that has one; 0 without eyes,
    and where nothing says it. Raises PlanError for a picture smaller than a patch."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return 0
    side, patch = image_size or config.get("image_size") or vision.get("image_size"), vision.get("patch_size")
    stated = next((config[key] for key in ("mm_tokens_per_image", "image_seq_length") if config.get(key)), 0)
    if not isinstance(side, int) or not isinstance(patch, int) or patch < 1:
        return int(stated)
    patch *= vision.get("spatial_merge_size") or 1
    if side < patch:
        raise PlanError(f"a picture of {side} pixels is smaller than a patch of {patch}; show a larger one")
    if config.get("model_type") == "aya_vision":
        return int(side // patch // config.get("downsample_factor", 2)) ** 2
    if config.get("model_type") != "llava" and stated:
        return int(stated)
    class_token = vision.get("model_type") not in ("siglip_vision_model", "siglip")
    return int(side // patch) ** 2 + (class_token and config.get("vision_feature_select_strategy") == "full")


def of_checkpoint(checkpoint: Checkpoint) -> tuple[int, int]:
    """(tokens of one picture, the longest text) as a checkpoint's files say, 0 for either that they do not."""
    config = checkpoint.config
    text = config.get("text_config") or config
    kind = config.get("base_model_type") or config.get("model_type")
    tokens = image_tokens({**config, "model_type": kind}, _picture_size(checkpoint.root))
    return tokens, int(text.get("max_position_embeddings") or 0)


def _of_path(path: Path, vision: str | None, image_size: int) -> Skeleton:
    if path.is_file():
        return _of_config_file(path, str(path), vision, image_size)
    weights = (path / SINGLE_FILE).is_file() or (path / INDEX_FILE).is_file()
    if not weights:
        return _of_config_file(path / CONFIG_FILE, str(path), vision, image_size)
    checkpoint = Checkpoint.open(path)
    if checkpoint.mote is not None or vision is not None:
        # Its tensors are no longer those of the dense model, or not all of what is asked for.
        return _of_config_file(path / CONFIG_FILE, str(path), vision, image_size)
    tensors = tuple(PlannedTensor(info.name, info.dtype, info.shape) for info in checkpoint.tensors.values())
    size = image_size or _picture_size(path)
    return _skeleton(tensors, checkpoint.config, str(path), "the headers of its files", size, str(path))


def _of_config_file(path: Path, name: str, vision: str | None, image_size: int) -> Skeleton:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}; give a config.json or a folder with one") from None
    except ValueError as error:
        raise PlanError(f"{path}: not valid JSON ({error}); fetch it again") from None
    if not isinstance(plain, dict):
        raise PlanError(f"{path}: holds a {type(plain).__name__}, not the JSON object of a config; fetch it again")
    plain = {"model_type": plain.get("base_model_type"), **plain}
    if plain["model_type"] == "mote_lmm":
        plain["model_type"] = plain.get("base_model_type")
    own = plain.get("quantization_config")
    if isinstance(own, dict) and own.get("quant_method") == QUANT_METHOD:
        del plain["quantization_config"]
    if vision is not None and isinstance(plain.get("text_config"), dict):
        if vision != "none":
            raise PlanError(f"{path}: has a vision tower of its own; drop --vision, or say --vision none")
        text = plain["text_config"]
        plain = {"tie_word_embeddings": plain.get("tie_word_embeddings", False), "dtype": plain.get("dtype"), **text}
    elif vision is not None:
        plain = {**known.joined(plain, vision), **({"dtype": plain["dtype"]} if "dtype" in plain else {})}
    return of_config(plain, name, f"{path.name}", image_size=image_size or _picture_size(path.parent), where=str(path))


def _skeleton(
    tensors: tuple[PlannedTensor, ...],
    config: Mapping[str, Any],
    name: str,
    source: str,
    image_size: int,
    where: str,
) -> Skeleton:
    try:
        found = {tensor.name: tensor.shape for tensor in tensors}
        sizes = with_sizes(MoteConfig(layers=(0,)), found)
    except MoteError as error:
        raise PlanError(f"{where}: {error}") from None
    text = config.get("text_config") or config
    return Skeleton(
        name=name,
        source=source,
        tensors=tensors,
        hidden_size=sizes.hidden_size,
        ffn_size=sizes.ffn_size,
        layers=len(decoder_prefixes(found)),
        image_tokens=image_tokens(config, image_size),
        positions=int(text.get("max_position_embeddings") or 0),
        model_type=str(text.get("model_type", "")),
        config=config,
    )


def _check(config: Mapping[str, Any], where: str) -> None:
    """Raises PlanError for a config without the sizes of a model, or with impossible ones."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise PlanError(f"{where}: has no model_type; give the config.json of a Hugging Face model")
    for part in ("text_config", "vision_config"):
        if part in config and not isinstance(config[part], Mapping):
            raise PlanError(f"{where}: {part} is not an object; fetch it again")
        _check_sizes(config.get(part, {}), f"{where}: {part}")
    _check_sizes(config, where)
    if config.get("quantization_config"):
        raise PlanError(f"{where}: is quantised by another method; give the config.json of the model it was made of")


def _check_sizes(config: Mapping[str, Any], where: str) -> None:
    for key in (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "vocab_size", "patch_size", "image_size", "num_channels", "mlp_ratio", "downsample_factor"),
        *("max_position_embeddings", "alignment_intermediate_size", "mm_tokens_per_image", "image_seq_length"),
        "spatial_merge_size",
    ):
        value = config.get(key)
        if value is None or isinstance(value, list):
            continue
        limit = MOST_LAYERS if key == "num_hidden_layers" else LARGEST
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (key == "mlp_ratio" and isinstance(value, float))) or not 0 < value <= limit:
            raise PlanError(f"{where}: {key}={value!r} is not a whole number from 1 to {limit}; correct it")
    side, patch = config.get("image_size"), config.get("patch_size")
    if isinstance(side, int) and isinstance(patch, int) and side < patch:
        raise PlanError(f"{where}: image_size={side} is smaller than patch_size={patch}; correct it")


def _dtype(config: Mapping[str, Any], where: str) -> str:
    text = config.get("text_config") or {}
    stated = next((c[key] for c in (config, text) for key in ("dtype", "torch_dtype") if c.get(key)), "bfloat16")
    found = _DTYPES.get(str(stated).removeprefix("torch."))
    if found is None:
        raise PlanError(f"{where}: dtype {stated!r} is none of {', '.join(_DTYPES)}; correct it")
    return found


def _picture_size(folder: Path) -> int:
    """Side of the pictures that the processor beside a config.json makes, 0 where it does not say."""
    for name in _PICTURES:
        try:
            plain = json.loads((folder / name).read_text(encoding="utf-8"))
            plain = plain.get("image_processor") or plain
            if plain.get("do_center_crop", True) and plain.get("crop_size"):
                size = plain["crop_size"]
            else:
                size = plain.get("size")
            side = size if isinstance(size, int) else size.get("height") or size.get("shortest_edge")
            if isinstance(side, int) and side > 0:
                return side
        except (OSError, ValueError, AttributeError, KeyError):
            continue
    return 0


def _from_hub(name: str) -> Path:
    """config.json of a hub id, by transformers' cache or download."""
    try:
        from transformers.utils import cached_file

        found = cached_file(name, CONFIG_FILE)
    except Exception as error:  # whatever the hub's library raises
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise PlanError(f"{name}: no such path, and transformers cannot get it from the hub: {reason}") from None
    if found is None:
        raise PlanError(f"{name}: transformers finds no config.json for it; give the path of one")
    return Path(found)
