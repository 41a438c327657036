"""A vision-language model small enough to score in milliseconds, with its processor, pictures and questions."""

import json
from pathlib import Path
from typing import Any

import pytest

SENTENCE = "What is this ? red blue green How many one two three cat dog user assistant the"
WORDS = SENTENCE.split()
SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_processor() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
    )
    tokenizer.chat_template = TEMPLATE
    side = {"height": 28, "width": 28}
    return LlavaProcessor(
        image_processor=BitImageProcessorPil(
            do_resize=True, size=side, do_center_crop=False, crop_size=side, do_rescale=True, do_normalize=True
        ),
        tokenizer=tokenizer,
        patch_size=14,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        image_token="<image>",
        chat_template=TEMPLATE,
    )


def tiny_model(seed: int = 0) -> Any:
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=0,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = 3
    with torch.no_grad():
        model.lm_head.weight[[0, 1, 2, 4]] = 0  # special tokens other than the end of turn are never the likeliest
    return model.eval()


def write_mix(folder: Path) -> Path:
    """A drawn mix in miniature: three skills with three metrics, coloured squares as pictures."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    colors = ("red", "blue", "green")
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for index in range(9):
        name = f"images/{index}.png"
        color = colors[index % 3]
        Image.new("RGB", (20 + index, 24), color).save(folder / name)
        color_turns = [
            {"from": "human", "value": "<image>\nWhat is this ?", "skill": "color"},
            {"from": "gpt", "value": color},
        ]
        count_turns = [
            {"from": "human", "value": "How many cat ?", "skill": "counting"},
            {"from": "gpt", "value": "two" if index < 6 else "three"},
        ]
        if index < 5:
            rows["train"].append({"id": f"t{index}", "image": name, "conversations": [*color_turns, *count_turns]})
            continue
        common = {"image": name, "conversations": color_turns, "template": "What is this ?"}
        extras = {"skill": "color", "metric": "multiple_choice", "choices": list(colors)}
        rows["test"].append({"id": f"c{index}", **common, **extras})
        question = {"from": "human", "value": "<image>\nHow many dog ?"}
        counted = {"id": f"n{index}", "image": name, "conversations": [question, count_turns[1]]}
        rows["test"].append({**counted, "skill": "counting", "template": "How many {things} ?"})
        said = {"skill": "words", "metric": "one_minus_cer"}
        rows["test"].append({"id": f"w{index}", **common, **said})
    for split, items in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in items)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mix(tmp_path_factory.mktemp("mix") / "data")


@pytest.fixture(scope="session")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="session")
def processor() -> Any:
    return tiny_processor()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model: Any, processor: Any) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "dense"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
