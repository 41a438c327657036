"""One dense vision-language checkpoint out of a tower, a language model and a connector that starts at random."""

from pathlib import Path
from typing import Any

import torch
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
from mote.assemble.language import IMAGE_TOKEN, claim_image_token, load_language_model
from mote.assemble.vision import load_tower
from mote.checkpoint.atomic import new_directory
from mote.checkpoint.lineage import Provenance
from mote.checkpoint.writer import seal_checkpoint
from mote.data.sources import resolve
from mote.errors import UnsupportedModelError

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""DINOv2's preprocessing; a tower loaded from a folder brings its own image processor if it has one."""


def assemble(out: Path, config: AssembleConfig, *, force: bool = False) -> Path:
    """Write a dense checkpoint to `out`: tower, connector, language model, processor and chat template.

    Raises MoteError if a source cannot be fetched or its parts are not recognised, or if `out` exists.
    """
    provenance = Provenance.start("assemble", config=config, seed=config.seed)
    with new_directory(out, force=force) as partial:
        tower = load_tower(_located(config.vision))
        language_model, tokenizer = load_language_model(_located(config.language))
        tokenizer = claim_image_token(tokenizer)
        torch.manual_seed(config.seed)  # the connector's initial weights
        model = join(tower, language_model, tokenizer, config)
        model.to(getattr(torch, config.dtype)).save_pretrained(partial)
        processor(tower, tokenizer, config).save_pretrained(partial)
        seal_checkpoint(partial, provenance)
    return out


def _located(weights: Weights) -> Path:
    return resolve(weights.source, sha256=weights.sha256 or None, member=weights.member or None)


def join(
    tower: PreTrainedModel, language_model: PreTrainedModel, tokenizer: Any, config: AssembleConfig
) -> PreTrainedModel:
    """The vision-language model (fp32) with the given parts' weights and a random connector."""
    grid = config.image_size // tower.config.patch_size
    if config.image_size % tower.config.patch_size or (config.family == "aya_vision" and grid % config.downsample):
        raise UnsupportedModelError(
            f"image_size={config.image_size} is not a multiple of patch {tower.config.patch_size} "
            f"x downsample {config.downsample}"
        )
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
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = None
    return model


def has_class_token(tower: PreTrainedModel) -> bool:
    """Whether the tower's first output token is a class token, which is no part of the picture."""
    return any(name.endswith(("cls_token", "class_embedding")) for name, _ in tower.named_parameters())


def processor(tower: PreTrainedModel, tokenizer: Any, config: AssembleConfig) -> LlavaProcessor:
    """Tokenizer and image processor in one; it expands `<image>` to as many tokens as the connector gives."""
    side = {"height": config.image_size, "width": config.image_size}
    return LlavaProcessor(
        image_processor=BitImageProcessorPil(
            do_resize=True,
            size=side,
            do_center_crop=False,
            crop_size=side,
            do_rescale=True,
            do_normalize=True,
            image_mean=IMAGENET_MEAN,
            image_std=IMAGENET_STD,
        ),
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size * (config.downsample if config.family == "aya_vision" else 1),
        vision_feature_select_strategy="default" if has_class_token(tower) else "full",
        num_additional_image_tokens=int(has_class_token(tower)),
        image_token=IMAGE_TOKEN,
        chat_template=tokenizer.chat_template,
    )
