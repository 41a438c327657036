"""Parts of a model so small that the whole pipeline runs in seconds, and pictures that need no download."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SENTENCE = "What is this ? red blue green How many one two three cat dog user assistant the"
SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<spare>"]


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tower` (DINOv2) and `language` (Llama with a word-level tokenizer)."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    tower = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(tower).save_pretrained(folder / "tower")
    words = [*SPECIAL, *SENTENCE.split()]
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "language")
    inner = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<spare>"],
    )
    tokenizer.save_pretrained(folder / "language")
    return folder


@pytest.fixture
def write_mix() -> Callable[[Path], Path]:
    """Writes a drawn mix in miniature into a folder."""
    return _write_mix


def _write_mix(folder: Path) -> Path:
    """Coloured squares in the form that `mote data draw` gives: train, val and test."""
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    colors = ("red", "blue", "green")
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for index in range(24):
        color, name = colors[index % 3], f"images/{index}.png"
        Image.new("RGB", (20 + index, 24), color).save(folder / name)
        turns = [{"from": "human", "value": "<image>\nWhat is this ?"}, {"from": "gpt", "value": color}]
        split = "test" if index >= 18 else "val" if index >= 14 else "train"
        row: dict[str, Any] = {"id": str(index), "image": name, "conversations": turns}
        if split != "train":
            row |= {"skill": "color", "metric": "multiple_choice", "choices": list(colors)}
            count = [{"from": "human", "value": "<image>\nHow many cat ?"}, {"from": "gpt", "value": "one"}]
            rows[split].append({"id": f"n{index}", "image": name, "skill": "counting", "conversations": count})
        rows[split].append(row)
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def checkpoint(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint assembled from `parts`."""
    from mote.assemble import AssembleConfig, assemble
    from mote.assemble.config import Weights

    out = tmp_path_factory.mktemp("checkpoint") / "dense"
    vision, language = Weights(source=str(parts / "tower")), Weights(source=str(parts / "language"))
    config = AssembleConfig(vision=vision, language=language, image_size=56, connector_width=32, dtype="float32")
    return assemble(out, config)
