"""Tokenizers as llama.cpp knows them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mote.checkpoint.shards import Checkpoint
from mote.errors import CheckpointError, UnsupportedModelError
from mote.export.tokenizer import CONTROL, NORMAL, UNUSED, USER_DEFINED, read_vocabulary


class Text:
    """What a config says of tokens."""

    bos_token_id, eos_token_id, pad_token_id = 1, [2, 0], 0


@pytest.fixture
def read(tmp_path: Path, tokenizers: Callable[..., Any]) -> Callable[..., Any]:
    """`read(kind, change)`: the vocabulary of a tokenizer whose tokenizer.json `change` has edited in place."""

    def vocabulary(kind: str = "gpt-2", change: Callable[[dict[str, Any]], Any] = lambda plain: None) -> Any:
        tokenizers(kind).save_pretrained(tmp_path)
        path = tmp_path / "tokenizer.json"
        plain = json.loads(path.read_text(encoding="utf-8"))
        change(plain)
        path.write_text(json.dumps(plain), encoding="utf-8")
        checkpoint = Checkpoint(root=tmp_path, config={}, mote=None, tensors={}, shards=())
        return read_vocabulary(checkpoint, Text, 384)

    return vocabulary


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "qwen2"])
def test_the_name_is_found_from_what_the_file_does(read: Callable[..., Any], kind: str) -> None:
    found = read(kind)
    assert (found.pre, found.bos, found.eos, found.pad, found.add_bos) == (kind, 1, 2, 0, False)
    assert found.tokens[:4] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    assert found.types[:4] == [CONTROL] * 4
    assert found.types[4] == NORMAL
    assert found.tokens[-1] == "[PAD383]"
    assert found.types[-1] == UNUSED
    assert len(found.tokens) == len(found.types) == 384
    assert found.merges
    assert all(pair.count(" ") == 1 for pair in found.merges)
    assert "<|im_start|>assistant" in found.template
    assert not found.notes


def test_added_words_and_a_leading_token(read: Callable[..., Any]) -> None:
    def change(plain: dict[str, Any]) -> None:
        plain["added_tokens"].append({**plain["added_tokens"][0], "id": 370, "content": "<tool>", "special": False})
        plain["normalizer"] = {"type": "NFC"}
        sequence = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        special = {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}
        plain["post_processor"] = {
            "type": "TemplateProcessing",
            "single": sequence,
            "pair": sequence,
            "special_tokens": special,
        }
        plain["post_processor"]["pair"] = [*sequence, {"Sequence": {"id": "B", "type_id": 1}}]

    found = read(change=change)
    assert (found.tokens[370], found.types[370]) == ("<tool>", USER_DEFINED)
    assert found.add_bos
    assert "NFC" in found.notes[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.update(pre_tokenizer={"type": "Whitespace"}),
        lambda plain: plain["pre_tokenizer"].update(add_prefix_space=True),
        lambda plain: plain["model"].update(byte_fallback=True),
        lambda plain: plain.update(normalizer={"type": "Lowercase"}),
        lambda plain: plain["pre_tokenizer"].update(use_regex=False),
    ],
)
def test_another_way_of_cutting_is_refused(read: Callable[..., Any], change: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"none of the tokenizers .* \(gpt-2, smollm, qwen2\)"):
        read(change=change)


def test_a_tokenizer_of_another_model_is_refused(read: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has token 400, the model 384 embeddings"):
        read(change=lambda plain: plain["model"]["vocab"].update({"far": 400}))
    (tmp_path / "tokenizer.json").write_text("{}")
    checkpoint = Checkpoint(root=tmp_path, config={}, mote=None, tensors={}, shards=())
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        read_vocabulary(checkpoint, Text, 384)
