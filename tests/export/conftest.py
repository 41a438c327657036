"""Small random checkpoints whose every part counts: experts that differ, routers that decide, biases that are not 0."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mote

WORDS = (
    "What is this thing in the picture ? It's a red ball, 12 345 numbers and words. The cat sat on the mat; "
    "why would they've gone?\n\nA new line\tand a tab, über straße, 中文, emoji 🙂."
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VOCABULARY = 384
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rms_norm_eps": 1e-5,
}


def tokenizer(kind: str = "gpt-2") -> Any:
    """A byte-level BPE tokenizer that cuts words as `kind` of llama.cpp does."""
    import transformers as tf
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "qwen2")
    first = {
        "gpt-2": [],
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN), behavior="isolated")],
    }[kind]
    inner.pre_tokenizer = pre_tokenizers.Sequence([*first, level]) if first else level
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([WORDS] * 4, trainer)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """`make(family, pack={}, kind="gpt-2", text={}, vision={}, **upcycle)`: a packed checkpoint, or with pack=None an
    up-cycled one. Families: "llama", "qwen2", "llava" (SigLIP and Qwen2), "llava-llama" (SigLIP and Llama, without
    biases)."""

    def build(
        family: str,
        pack: dict[str, Any] | None = {},  # noqa: B006  never written to
        kind: str = "gpt-2",
        text: dict[str, Any] | None = None,
        vision: dict[str, Any] | None = None,
        **upcycle: Any,
    ) -> Path:
        import torch

        root = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        model = mote.upcycle(_dense(family, {**SIZES, **(text or {})}, vision or {}), **upcycle)
        _stir(model, torch.Generator().manual_seed(1))
        model.save_pretrained(root / "upcycled")
        _side_files(family, kind, root / "upcycled")
        return root / "upcycled" if pack is None else mote.pack(root / "upcycled", root / "packed", **pack)

    return build


def _dense(family: str, sizes: dict[str, Any], eyes: dict[str, Any]) -> Any:
    import torch
    import transformers as tf

    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    torch.manual_seed(0)
    if family == "llama":
        return tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, tie_word_embeddings=True)).eval()
    if family == "qwen2":
        return tf.Qwen2ForCausalLM(tf.Qwen2Config(**sizes, tie_word_embeddings=False)).eval()
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, **eyes}
    vision = tf.SiglipVisionConfig(**shape, image_size=56, patch_size=14)
    config = tf.LlavaConfig(
        vision_config=vision,
        text_config=(tf.LlamaConfig if family == "llava-llama" else tf.Qwen2Config)(**sizes),
        image_token_id=SPECIAL.index("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )
    return tf.LlavaForConditionalGeneration(config).eval()


def _stir(model: Any, generator: Any) -> None:
    """Experts and routers of their own, and vectors that are neither 0 nor 1."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("router.weight"):
                weight.copy_(noise)  # decided: no token stands between two experts
            elif name.endswith(".gain"):
                weight.copy_(1 + 0.3 * noise)
            elif ".experts." in name:
                weight.add_(0.02 * noise)
            elif weight.ndim == 1:
                weight.add_(0.1 * noise)
            elif "embed_tokens" in name:
                weight.copy_(0.3 * noise)
            elif "position_embedding" not in name:
                weight.mul_(3)


def _side_files(family: str, kind: str, root: Path) -> None:
    import transformers as tf

    found = tokenizer(kind)
    if not family.startswith("llava"):
        found.save_pretrained(root)
        return
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tf.LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 56, "width": 56}),
        tokenizer=found,
        patch_size=14,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token="<image>",
        chat_template=TEMPLATE,
    ).save_pretrained(root)


@pytest.fixture
def tokenizers() -> Callable[..., Any]:
    """`tokenizers(kind)`: see `tokenizer`."""
    return tokenizer


@pytest.fixture
def reference() -> Callable[[Path], Any]:
    """`reference(upcycled)`: the checkpoint as an fp32 model in transformers whose experts take activations as they
    come."""
    return _without_activation_quantization


def _without_activation_quantization(root: Path) -> Any:
    import dataclasses

    import torch

    from mote.model.block import blocks
    from mote.model.opening import open_model

    model = open_model(root, dtype=torch.float32)
    for block in blocks(model):
        block.experts.format = dataclasses.replace(block.experts.format, activation="none")
    return model.eval()
