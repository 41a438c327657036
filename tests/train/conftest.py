"""Dense and up-cycled checkpoints of tiny models, with a processor, pictures and conversations to train on."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mote.assemble.language import CHAT_TEMPLATE
from mote.train.config import TrainConfig

WORDS = ("what", "is", "this", "on", "the", "left", "how", "many", "red", "blue", "green", "cat", "dog", "one", "two")
WORDS += ("three", "user", "assistant")
SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>"]
COLORS = ("red", "blue", "green")


def tiny_processor(*, vision: bool) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])} | {"<image>": 98}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    if not vision:
        return tokenizer
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
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture(scope="session")
def write_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`write_checkpoint(model, upcycled=False, **changes)`: the model as a bf16 checkpoint folder."""

    def write(model: Any, *, vision: bool, upcycled: bool = False, **changes: Any) -> Path:
        import torch

        folder = tmp_path_factory.mktemp("checkpoint")
        model.to(torch.bfloat16).save_pretrained(folder / "dense")
        tiny_processor(vision=vision).save_pretrained(folder / "dense")
        if not upcycled:
            return folder / "dense"
        import mote

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # models this small are meant
            mote.upcycle(folder / "dense", folder / "upcycled", **changes)
        return folder / "upcycled"

    return write


@pytest.fixture
def dense(tiny: Callable[..., Any], write_checkpoint: Callable[..., Path]) -> Path:
    return write_checkpoint(tiny("aya_vision"), vision=True)


@pytest.fixture
def upcycled(tiny: Callable[..., Any], write_checkpoint: Callable[..., Path]) -> Path:
    return write_checkpoint(tiny("aya_vision"), vision=True, upcycled=True)


@pytest.fixture
def text_only(tiny: Callable[..., Any], write_checkpoint: Callable[..., Path]) -> Path:
    return write_checkpoint(tiny("llama"), vision=False)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": said} for pair in pairs for who, said in zip(("human", "gpt"), pair, strict=True)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows, every third without a picture, some of two turns; and four held-out ones."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("data")
    rows = []
    for index in range(16):
        color = COLORS[index % 3]
        Image.new("RGB", (20 + index, 24), color).save(folder / f"{index}.png")
        counting = ("how many cat", ("one", "two", "three")[index % 3])
        if index % 3 == 2:
            rows.append({"id": str(index), "conversations": turns(("what is this " * (1 + index % 4), "dog"))})
            continue
        asked = [("<image>\nwhat is this", color), counting][: 1 + index % 2]
        rows.append({"id": str(index), "image": f"{index}.png", "conversations": turns(*asked)})
    write_rows(folder / "train.jsonl", rows[:12])
    write_rows(folder / "val.jsonl", rows[12:])
    return folder


@pytest.fixture
def settings() -> Callable[..., TrainConfig]:
    """`settings(**changes)`: few steps at a high rate, no probe."""

    def make(**changes: Any) -> TrainConfig:
        common: dict[str, Any] = {
            "epochs": 1.0,
            "batch_size": 3,
            "learning_rate": 1e-2,
            "log_every": 1,
            "probe_conversations": 0,
            "precision": "fp32",
            "device": "cpu",
        }
        return TrainConfig(**{**common, **changes})

    return make


@pytest.fixture(autouse=True)
def probe_text(monkeypatch: pytest.MonkeyPatch) -> str:
    """Text for the perplexity probe that needs no network, in words that the tiny tokenizer knows."""
    text = "what is this on the left " * 60
    monkeypatch.setattr("mote.train.session.english_text", lambda: text)
    return text
