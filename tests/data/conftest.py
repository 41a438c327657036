"""Tiny stand-ins: a byte-level tokenizer with chat tokens, and wheels that are zip files like the real ones."""

import gzip
import hashlib
import io
import json
import random
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from mote.data import sources
from mote.data.skills import attributes, charts, concepts, lettering, words

WORDS = [f"{a}{b}{c}" for a in "bcdfgh" for b in "aeio" for c in ("t", "n", "rk")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A cache folder of the test's own, except where the real wheels are asked for."""
    folder = tmp_path / "cache"
    if "slow" not in request.keywords:
        monkeypatch.setenv("MOTE_CACHE", str(folder))
    _forget()
    yield folder
    _forget()


@pytest.fixture
def write_wheel(cache: Path):
    """write_wheel(name, version, {member: bytes}) -> SHA-256 of a wheel that now lies in the cache."""

    def write(name: str, version: str, members: dict[str, bytes]) -> str:
        path = cache / "wheels" / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as wheel:
            for member, data in members.items():
                wheel.writestr(member, data)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return write


@pytest.fixture
def small_wheels(write_wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source of the mix as a small wheel: letters as drawings, 72 words, 80 figures, 24 countries."""
    font = ImageFont.load_default(20).font_bytes
    names = {chr(0x4E00 + k): {"en": f":{word}:"} for k, word in enumerate(WORDS)}
    for k, name in enumerate(concepts.concepts()):
        names[chr(ord("A") + k % 26) if k < 26 else chr(0xC0 + k)] = {"en": f":{concepts.ALIASES.get(name, name)}:"}
    rows = ["country,year,fertility,life_expectancy,population"]
    rows += [f"Land{chr(65 + k)},2000,{1 + k % 7}.5,{30 + 2 * k},{(k + 1) * 4_000_000}" for k in range(24)]
    content = {
        "emoji": {concepts.NAMES: json.dumps(names).encode()},
        "openmoji": {concepts.FONT: font},
        "bokeh-sampledata": {charts.TABLE: gzip.compress("\n".join(rows).encode())},
        "easy-vqa": _figures(),
        **{
            key: {member: font for source, member in lettering.FONTS.values() if source == key}
            for key in ("source-sans", "source-serif", "fredoka")
        },
    }
    for key, members in content.items():
        digest = write_wheel(f"small-{key}", "1", members)
        source = sources.Source(uri=f"pip:small-{key}==1", sha256=digest, licence="none", holds="test data")
        monkeypatch.setitem(sources.SOURCES, key, source)


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer with SmolLM2's chat tokens and `<image>`; no chat template yet."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain.train_from_iterator(["user\nWhat is in the picture?\nassistant\na cat, two dogs"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )


def _figures() -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for part, count in (("train", 60), ("test", 30)):
        asked: list[list[object]] = []
        for number in range(count):
            # Picture 0 of both parts is the same: it must not be trained on.
            shade = random.Random(0 if number == 0 else hash((part == "test", number)))
            colour = tuple(shade.randrange(256) for _ in range(3))
            stream = io.BytesIO()
            Image.new("RGB", (8, 8), colour).save(stream, format="PNG")
            members[f"{attributes.FOLDER}/{part}/images/{number}.png"] = stream.getvalue()
            asked += [
                ["what color is the circle?", "red", number],
                ["what shape is in the image?", "circle", number],
                ["is there a circle?", "yes", number],
            ]
        members[f"{attributes.FOLDER}/{part}/questions.json"] = json.dumps(asked).encode()
    return members


def _forget() -> None:
    for cached in (
        sources.archive,
        sources._digest,
        concepts.emoji_names,
        concepts.drawing,
        concepts._ink,
        concepts._font,
        attributes._table,
        charts._rows,
        words.vocabulary,
        lettering.font,
        lettering._file,
    ):
        cached.cache_clear()
