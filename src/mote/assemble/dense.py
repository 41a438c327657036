"""One dense vision-language checkpoint out of a tower, a language model and a connector that starts at random."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from mote.assemble.config import AssembleConfig, Weights
from mote.assemble.language import END_OF_TURN, IMAGE_TOKEN, claim_image_token, load_language_model
from mote.assemble.vision import load_tower, preprocessing
from mote.checkpoint.atomic import new_directory
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.writer import seal_checkpoint
from mote.data.sources import SCHEME, SOURCES, resolve
from mote.errors import CheckpointError, UnsupportedModelError

INTERPOLATES = ("dinov2",)
"""Towers that fit their position embeddings to any image size by themselves."""


def assemble(out: Path, config: AssembleConfig, *, force: bool = False) -> Path:
    """Write a dense checkpoint to `out`: tower, connector, language model, processor and chat template.

    Raises MoteError if a source cannot be fetched or its parts are not recognised, or if `out` exists.
    """
    provenance = Provenance.start("assemble", config=config, seed=config.seed)
    with new_directory(out, force=force) as partial:
        vision = locate(config.vision)
        tower = load_tower(vision)
        language_model, tokenizer = load_language_model(locate(config.language))
        tokenizer = claim_image_token(tokenizer)
        torch.manual_seed(config.seed)  # the connector's initial weights
        model = join(tower, language_model, tokenizer, config).to(getattr(torch, config.dtype))
        broken = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
        if broken:
            raise UnsupportedModelError(f"{broken[0]} holds NaN or Inf; the source is damaged, fetch it again")
        try:
            model.save_pretrained(partial)
            processor(tower, tokenizer, config, preprocessing(vision)).save_pretrained(partial)
        except SafetensorError as error:  # a full disk, in safetensors' words
            raise CheckpointError(f"{out}: cannot be written: {error}; free space there") from error
        seal_checkpoint(partial, provenance)
    return out


def locate(weights: Weights) -> Path | str:
    """Where `weights` lie on this machine, or, for what is neither pip source nor path, the hub id as it is."""
    source = weights.source
    is_path = Path(source).expanduser().exists() or source.startswith((".", "/", "~")) or bool(weights.member)
    if is_path or source.startswith(SCHEME) or source in SOURCES or Path(source).suffix in (".gguf", ".onnx"):
        return resolve(source, sha256=weights.sha256 or None, member=weights.member or None)
    return source


def join(
    tower: PreTrainedModel, language_model: PreTrainedModel, tokenizer: Any, config: AssembleConfig
) -> PreTrainedModel:
    """The vision-language model (fp32) with the given parts' weights and a random connector.

    Raises UnsupportedModelError for an image size that patches, pixel shuffle or position embeddings do not allow.
    """
    _check_size(tower, config)
    shared = {
        "vision_config": tower.config,
        "text_config": language_model.config,
        "image_token_index": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        "vision_feature_select_strategy": "default" if has_class_token(tower) else "full",
        "tie_word_embeddings": language_model.config.tie_word_embeddings,
    }
    model: PreTrainedModel
    if config.family == "aya_vision":
        aya = AyaVisionConfig(**shared, vision_feature_layer=-1, downsample_factor=config.downsample)
        aya.alignment_intermediate_size = config.connector_width
        model = AyaVisionForConditionalGeneration(aya)
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**shared, vision_feature_layer=-2))
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    model.lm_head.load_state_dict(language_model.lm_head.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = None
    return model


def _check_size(tower: PreTrainedModel, config: AssembleConfig) -> None:
    step = tower.config.patch_size * (config.downsample if config.family == "aya_vision" else 1)
    if config.image_size < step or config.image_size % step:
        raise UnsupportedModelError(f"image_size={config.image_size}: must be a multiple of {step} for this tower")
    trained = getattr(tower.config, "image_size", config.image_size)
    if trained != config.image_size and tower.config.model_type not in INTERPOLATES:
        raise UnsupportedModelError(
            f"image_size={config.image_size}: {type(tower).__name__} has position embeddings for {trained} only; use it"
        )


def has_class_token(tower: PreTrainedModel) -> bool:
    """Whether the tower's first output token is a class token, which is no part of the picture."""
    return any(name.endswith(("cls_token", "class_embedding")) for name, _ in tower.named_parameters())


def processor(
    tower: PreTrainedModel, tokenizer: Any, config: AssembleConfig, colors: dict[str, list[float]]
) -> LlavaProcessor:
    """Tokenizer and image processor in one; it expands `<image>` to as many tokens as the connector gives.

    colors: image_mean and image_std of the tower.
    """
    side = {"height": config.image_size, "width": config.image_size}
    return LlavaProcessor(
        image_processor=BitImageProcessorPil(
            do_resize=True,
            size=side,
            do_center_crop=False,
            crop_size=side,
            do_rescale=True,
            do_normalize=True,
            **colors,
        ),
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size * (config.downsample if config.family == "aya_vision" else 1),
        vision_feature_select_strategy="default" if has_class_token(tower) else "full",
        num_additional_image_tokens=int(has_class_token(tower)),
        image_token=IMAGE_TOKEN,
        chat_template=tokenizer.chat_template,
    )
