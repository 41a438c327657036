"""Language models and their tokenizers: transformers folders, or GGUF files that are dequantised on the way in."""

from pathlib import Path

import torch
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


def load_language_model(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Causal language model (fp32) and tokenizer at `path`, a `.gguf` file or a transformers folder."""
    if path.suffix == ".gguf":
        # Without an explicit dequantisation the loaded model refuses to be saved.
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path)
    return model, tokenizer


def claim_image_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer in which `<image>` is one token: its own if the vocabulary has one, else in the slot of a
    special token that nothing uses. Renaming a slot keeps the vocabulary's size, so tied embeddings need no resize.
    """
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
    claimed.padding_side = "right"
    claimed.chat_template = CHAT_TEMPLATE
    return claimed


def _is_dialogue(token: str) -> bool:
    return token.startswith(("<|im_", "<|endoftext"))
