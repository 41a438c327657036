"""Language models and their tokenizers: transformers folders, or GGUF files that are dequantised on the way in."""

import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mote.errors import UnsupportedModelError

IMAGE_TOKEN = "<image>"
END_OF_TURN = "<|im_end|>"

# Written once per checkpoint and used by every stage. No default system prompt: it would cost more tokens than a
# question does. An image stands where the message puts it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, ImportError, RuntimeError, EOFError),
    *(SafetensorError, struct.error),
)
"""What transformers raises for a source that is missing, truncated, or of a kind it does not know."""


def load_language_model(source: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Causal language model (fp32) and tokenizer at `source`: a `.gguf` file, a transformers folder, or a hub id.

    Raises UnsupportedModelError if it cannot be read.
    """
    options: dict[str, Any] = {}
    where: Path | str = source
    if isinstance(source, Path) and source.suffix == ".gguf":
        where, options = source.parent, {"gguf_file": source.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
        if options:
            # Without an explicit dequantisation the loaded model refuses to be saved.
            options["quantization_config"] = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, **options
        )
    except UNREADABLE as error:
        raise UnsupportedModelError(f"language model {source}: {first_line(error)}") from error
    return model, tokenizer


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def claim_image_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer in which `<image>` is one token: its own if the vocabulary has one, else in the slot of a
    special token that nothing uses. Renaming a slot keeps the vocabulary's size, so tied embeddings need no resize.

    Raises UnsupportedModelError without such a slot, or without the tokens of our chat template.
    """
    absent = [token for token in ("<|im_start|>", END_OF_TURN) if token not in tokenizer.get_vocab()]
    if absent:
        raise UnsupportedModelError(f"tokenizer: no {' and no '.join(absent)}; use a language model trained on ChatML")
    if IMAGE_TOKEN in tokenizer.get_vocab():
        claimed = tokenizer
    else:
        used = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token}
        added = [token for _, token in sorted(tokenizer.added_tokens_decoder.items())]
        free = [t.content for t in added if t.special and t.content not in used and not _is_dialogue(t.content)]
        if not free:
            raise UnsupportedModelError("tokenizer: no <image> token, and no unused special token to rename")
        text = tokenizer.backend_tokenizer.to_str().replace(f'"{free[-1]}"', f'"{IMAGE_TOKEN}"')
        claimed = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(text),
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            pad_token=tokenizer.pad_token or tokenizer.eos_token,
            unk_token=tokenizer.unk_token,
        )
        if IMAGE_TOKEN not in claimed.get_vocab():
            raise UnsupportedModelError(
                f"tokenizer: cannot rename {free[-1]} to {IMAGE_TOKEN}; add it as a token first"
            )
    claimed.padding_side = "right"
    claimed.chat_template = CHAT_TEMPLATE
    return claimed


def _is_dialogue(token: str) -> bool:
    return token.startswith(("<|im_", "<|endoftext"))
