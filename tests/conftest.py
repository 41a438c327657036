"""Tiny random models of every family, and quiet libraries, for all tests."""

import os
import resource
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# MKL's float products depend on where in memory an operand starts; tests compare the same weights at two places.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

FAMILIES = ("llava", "aya_vision", "llama", "qwen2")
IMAGE, PAD = 98, 0


@pytest.fixture(autouse=True)
def _small_models_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning about small models is an error here; tests of the warning itself reset it."""
    monkeypatch.setattr("mote.upcycle.warning._given", True)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Make the system refuse to grow any file of this process beyond 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each supported family in turn."""
    return str(request.param)


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """`tiny(family, seed=0, **text)`: a dense fp32 model in eval mode; sizes are multiples of nothing."""
    return _tiny


@pytest.fixture
def inputs() -> Callable[[str], dict[str, Any]]:
    """`inputs(family)`: two rows, the second padded on the left by two, with pictures where the family has eyes."""
    return _inputs


@pytest.fixture
def processor() -> Any:
    """A processor for the tiny models with eyes: 99 words, the picture's token 98, 28 x 28 pixels, 4 image tokens."""
    import transformers as tf
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    special = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>", "<unk>"]
    words = [*special, "user", "assistant", "What", "is", "this"]
    words += [f"word{i}" for i in range(IMAGE - len(words))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*words, "<image>"])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
    )
    turn = "{{ '<|im_start|>' + message['role'] + ' ' }}"
    parts = (
        "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    )
    template = (
        "{% for message in messages %}" + turn + "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}" + parts + "{% endif %}{{ '<|im_end|> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
    )
    tokenizer.chat_template = template
    side = {"height": 28, "width": 28}
    return tf.LlavaProcessor(
        image_processor=BitImageProcessorPil(do_resize=True, size=side, do_center_crop=False, crop_size=side),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=template,
    )


def _tiny(family: str, seed: int = 0, **text: Any) -> Any:
    import torch
    import transformers as tf

    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 99,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **text,
    }
    if family == "llama":
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes)).eval()
    if family == "qwen2":
        return tf.Qwen2ForCausalLM(tf.Qwen2Config(**sizes, tie_word_embeddings=True)).eval()
    if family == "llava":
        vision = tf.SiglipVisionConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        )
        config = tf.LlavaConfig(
            vision_config=vision,
            text_config=tf.Qwen2Config(**sizes),
            image_token_id=IMAGE,
            vision_feature_layer=-2,
            vision_feature_select_strategy="full",
        )
        return tf.LlavaForConditionalGeneration(config).eval()
    if family == "aya_vision":
        tower = tf.Dinov2Config(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=28,
            patch_size=7,
        )
        config = tf.AyaVisionConfig(
            vision_config=tower,
            text_config=tf.LlamaConfig(**sizes, tie_word_embeddings=True),
            downsample_factor=2,
            image_token_id=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            alignment_intermediate_size=40,
            tie_word_embeddings=True,
        )
        return tf.AyaVisionForConditionalGeneration(config).eval()
    raise ValueError(family)


def _inputs(family: str) -> dict[str, Any]:
    import torch

    ids = torch.tensor([[1, *[IMAGE] * 4, 5, 6, 7, 8, 9], [PAD, PAD, 1, *[IMAGE] * 4, 11, 12, 13]])
    if family in ("llama", "qwen2"):
        ids = torch.where(ids == IMAGE, 20, ids)
        return {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "pixel_values": pixels}
