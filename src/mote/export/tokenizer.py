"""A tokenizer as llama.cpp knows it: tokens, merges, and the name of what cuts text into words before merging.

llama.cpp has that cutting in code, by name. The name is found from what tokenizer.json does, not from the model's:
SmolLM2's own file cuts digits apart ("smollm"), the same vocabulary read back from a GGUF file does not ("gpt-2"), and
a wrong name gives other tokens without an error.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mote.checkpoint.shards import Checkpoint
from mote.errors import CheckpointError, UnsupportedModelError

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Token types of llama.cpp."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """pre: llama.cpp's name of the cutting. tokens, types: one per row of the embedding. template: of the chat, or "".
    notes: what is not the same."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int
    eos: int
    pad: int | None
    add_bos: bool
    template: str
    notes: tuple[str, ...] = ()

    def describe(self, writer: Any) -> None:
        """Writes it into a gguf.GGUFWriter."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.eos)
        if self.pad is not None:
            writer.add_pad_token_id(self.pad)
        writer.add_add_bos_token(self.add_bos)
        if self.template:
            writer.add_chat_template(self.template)


def read_vocabulary(checkpoint: Checkpoint, text: Any, rows: int) -> Vocabulary:
    """The tokenizer of a checkpoint for a table of `rows` tokens; text: the language model's config.

    Raises CheckpointError without a readable one, UnsupportedModelError for a kind that llama.cpp does not have.
    """
    path = checkpoint.root / "tokenizer.json"
    plain = _json(path)
    try:
        model, added = plain["model"], plain["added_tokens"]
        pre = _pre(plain, path)
        ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a tokenizer ({error!r}); fetch it again") from None
    if max(ids.values()) >= rows:
        raise CheckpointError(f"{path}: has token {max(ids.values())}, the model {rows} embeddings; fetch it again")
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    for token, index in ids.items():
        tokens[index], types[index] = token, NORMAL
    for token in added:
        types[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    eos = _end(checkpoint, text)
    bos = text.bos_token_id if isinstance(text.bos_token_id, int) else eos
    settings = _json(checkpoint.root / "tokenizer_config.json", missing_ok=True)
    if isinstance(settings.get("bos_token"), str):
        bos = ids.get(settings["bos_token"], bos)
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=merges,
        bos=bos,
        eos=eos,
        pad=text.pad_token_id if isinstance(text.pad_token_id, int) else None,
        add_bos=_adds_bos(path, bos),
        template=_template(checkpoint.root, settings),
        notes=tuple(_notes(plain)),
    )


def _pre(plain: dict[str, Any], path: Path) -> str:
    """llama.cpp's name of what tokenizer.json does before merging. Raises UnsupportedModelError for something else."""
    model, found = plain["model"], plain["pre_tokenizer"] or {}
    steps = found["pretokenizers"] if found.get("type") == "Sequence" else [found]
    kinds = [step.get("type") for step in steps]
    byte_level = kinds[-1] == "ByteLevel" and not steps[-1].get("add_prefix_space")
    usual = model.get("type") == "BPE" and not model.get("byte_fallback") and not model.get("ignore_merges")
    cuts = bool(steps[-1].get("use_regex", True))
    if usual and byte_level and (plain.get("normalizer") or {"type": "NFC"}).get("type") == "NFC":
        if cuts and kinds == ["ByteLevel"]:
            return "gpt-2"
        if cuts and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
            return "smollm"
        if not cuts and kinds == ["Split", "ByteLevel"] and steps[0]["pattern"].get("Regex") == _QWEN:
            return "qwen2"
    raise UnsupportedModelError(
        f"{path}: {model.get('type')} after {' and '.join(map(str, kinds))} is none of the tokenizers that export gguf "
        "knows in llama.cpp (gpt-2, smollm, qwen2)"
    )


def _notes(plain: dict[str, Any]) -> Iterator[str]:
    if plain.get("normalizer"):
        yield "the tokenizer composes Unicode (NFC) first, llama.cpp does not: text in NFC gives the same tokens"


def _adds_bos(path: Path, bos: int) -> bool:
    """Whether the tokenizer puts `bos` before a text. Raises UnsupportedModelError when it puts something else."""
    from tokenizers import Tokenizer

    try:
        ids = Tokenizer.from_file(str(path)).encode("").ids
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"{path}: not a tokenizer ({error}); fetch it again") from None
    if ids not in ([], [bos]):
        raise UnsupportedModelError(
            f"{path}: puts tokens {ids} around a text; llama.cpp can put one bos ({bos}) before it"
        )
    return bool(ids)


def _end(checkpoint: Checkpoint, text: Any) -> int:
    """The token that ends an answer: of generation_config.json, or else of the config, the first of several."""
    stated = _json(checkpoint.root / "generation_config.json", missing_ok=True).get("eos_token_id", text.eos_token_id)
    first = stated[0] if isinstance(stated, list) and stated else stated
    if not isinstance(first, int):
        raise CheckpointError(
            f"{checkpoint.root}: eos_token_id {stated!r} is no token id; correct generation_config.json"
        )
    return first


def _template(root: Path, settings: dict[str, Any]) -> str:
    path = root / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    stated = settings.get("chat_template")
    return stated if isinstance(stated, str) else ""


def _json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    if missing_ok and not path.is_file():
        return {}
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch it again") from None
    if not isinstance(plain, dict):
        raise CheckpointError(f"{path}: not a JSON object; fetch it again")
    return plain
