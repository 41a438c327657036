"""What llama.cpp makes of our files: the same tokens, logits, texts and picture embeddings.

    make test-export

builds llama.cpp in .venv-export and runs these. MOTE_LLAMA_PYTHON names another Python with llama-cpp-python in it.
The reference is our model with activations as they come: that is what llama.cpp computes with F32 weights; with blocks
of integers it quantises activations in blocks of its own, where mote does per token.
"""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mote
from mote.export.bailingmoe import export_gguf
from mote.export.config import GgufConfig
from mote.run.picture import Picture
from mote.ternary.format import WeightFormat

pytestmark = [pytest.mark.export, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "runs" / "small" / "packed"
EXACT = GgufConfig(experts="F32", shared="F32", attention="F32", head="F32", vision="F32")
PARTS = {"shared": "F32", "attention": "F32", "head": "F32"}
TEXTS = (
    "What is this thing?",
    "It's 12345 numbers, they've gone\n\n  over the mat;\tüber straße 中文 🙂",
    "<|im_start|>user\nWhat<|im_end|>\n<|im_start|>assistant\n",
    "  leading and trailing  ",
)
IDS = [[1, 17, 300, 45, 8, 9, 250, 33, 2, 64, 5, 77, 130, 222, 91, 14], [3, 4, 5, 6, 7, 350, 351, 352, 100, 101]]
Make = Callable[..., Path]


@pytest.fixture
def llama(tmp_path: Path) -> Callable[..., list[Any]]:
    """`llama(gguf, *steps)`: what llama.cpp answers to each step of `llama_worker`; dicts for steps with names."""
    python = Path(os.environ.get("MOTE_LLAMA_PYTHON", ROOT / ".venv-export" / "bin" / "python"))
    if not python.exists():
        pytest.fail(f"{python} is not there; run make test-export")

    def run(model: Path, *steps: dict[str, Any], kv: str = "f32") -> list[Any]:
        job, out = tmp_path / "job.json", tmp_path / "result.npz"
        job.write_text(json.dumps({"model": str(model), "kv": kv, "threads": 2, "steps": steps}))
        worker = Path(__file__).with_name("llama_worker.py")
        done = subprocess.run(
            [str(python), str(worker), str(job), str(out)], capture_output=True, text=True, timeout=800
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found = np.load(out)
        named = {"greedy": ("ids", "margin")}
        return [
            {name: found[f"{i}.{name}"] for name in named[step["do"]]} if step["do"] in named else found[str(i)]
            for i, step in enumerate(steps)
        ]

    return run


def distance(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Relative distance of each row."""
    return np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


def expected_logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(input_ids=torch.tensor([ids])).logits[0].float().numpy())


LINEAR = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("llama", {"combine": "gated"}),
        ("llama", {"text": LINEAR}),
        ("qwen2", {"top_k": 2}),
        ("llama", {"top_k": 2, "normalize_gates": True, "num_experts": 8}),
        ("llama", {"normalize_gates": True}),
    ],
)
def test_float_weights_give_our_logits(
    make: Make, reference: Any, llama: Any, tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    upcycled = make(family, pack=None, **settings)
    export_gguf(upcycled, tmp_path / "model.gguf", EXACT)
    model = reference(upcycled)
    found = llama(tmp_path / "model.gguf", *({"do": "logits", "ids": ids} for ids in IDS))
    for ids, logits in zip(IDS, found, strict=True):
        assert distance(logits, expected_logits(model, ids)).max() < 1e-5


WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}


@pytest.mark.parametrize(
    ("config", "text", "settings"),
    [
        (GgufConfig(experts="TQ2_0", **PARTS), WIDE, {}),
        (GgufConfig(experts="TQ1_0", **PARTS), WIDE, {}),
        (GgufConfig(experts="Q4_0", **PARTS), WIDE, {}),
        (GgufConfig(experts="TQ2_0", **PARTS), {}, {}),
        (
            GgufConfig(experts="TQ2_0", **PARTS),
            WIDE,
            {"routed": WeightFormat(scale="lloyd_max", granularity="group", group=64)},
        ),
        (GgufConfig(experts="TQ2_0", **PARTS), WIDE, {"routed": WeightFormat(granularity="row")}),
    ],
    ids=["TQ2_0", "TQ1_0", "Q4_0", "mixed", "groups", "rows"],
)
def test_ternary_experts_give_our_logits_within_2_in_1000(
    make: Make, reference: Any, llama: Any, tmp_path: Path, config: GgufConfig, text: Any, settings: Any
) -> None:
    upcycled = make("llama", pack=None, text=text, **settings)
    export_gguf(upcycled, tmp_path / "model.gguf", config)
    model, engine = reference(upcycled), mote.load(mote.pack(upcycled, tmp_path / "packed"), kv="f32")
    found = llama(tmp_path / "model.gguf", *({"do": "logits", "ids": ids} for ids in IDS))
    expected = [expected_logits(model, ids) for ids in IDS]
    errors = np.concatenate([distance(*pair) for pair in zip(found, expected, strict=True)])
    ours = np.concatenate(
        [distance(engine_logits(engine, ids), logits) for ids, logits in zip(IDS, expected, strict=True)]
    )
    print(f"relative error: median {np.median(errors):.2e}, largest {errors.max():.2e}; ours {np.median(ours):.2e}")
    assert errors.max() < 2e-3


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "qwen2"])
def test_texts_become_our_tokens(make: Make, llama: Any, tokenizers: Any, tmp_path: Path, kind: str) -> None:
    packed = make("llama", kind=kind)
    export_gguf(packed, tmp_path / "model.gguf", GgufConfig())
    messages = [{"role": "user", "content": TEXTS[1]}]
    steps = [*({"do": "tokenize", "text": text} for text in TEXTS), {"do": "render", "messages": messages}]
    *found, rendered = llama(tmp_path / "model.gguf", *steps)
    ours = tokenizers(kind)
    for text, ids in zip(TEXTS, found, strict=True):
        assert ids.tolist() == ours(text).input_ids
    assert rendered.tolist() == list(ours.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])


def agree(engine: Any, found: dict[str, np.ndarray], ids: list[int], tokens: int, tolerance: float) -> bool:
    """Whether greedy texts are the same, up to a token at which the top two logits are closer than the tolerance."""
    sequence = engine.sequence()
    try:
        logits = engine.prefill(sequence, ids)
        for token, margin in zip(found["ids"].tolist(), found["margin"].tolist(), strict=True):
            if int(logits.argmax()) != token:
                second, first = np.partition(logits, -2)[-2:]
                assert min(margin, first - second) < tolerance, f"{logits.argmax()} here, {token} there"
                return False
            sequence.append(token)
            logits = engine.step([sequence])[0]
        return True
    finally:
        engine.free(sequence)


@pytest.mark.parametrize("pack", [{}, {"shared": "int8", "attention": "int8", "head": "int8", "group": 32}])
def test_greedy_texts_are_the_engines(make: Make, llama: Any, tmp_path: Path, pack: dict[str, Any]) -> None:
    packed = make("qwen2", pack=pack, text=WIDE)
    done = export_gguf(packed, tmp_path / "model.gguf", GgufConfig())
    assert done.types["shared"] == (["Q8_0"] if pack else ["F32"])
    engine = mote.load(packed, kv="f32")
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 360, 12).tolist() for _ in range(12)]
    found = llama(tmp_path / "model.gguf", *({"do": "greedy", "ids": ids, "tokens": 16} for ids in prompts))
    spread = float(np.std(engine_logits(engine, prompts[0])))
    whole = [agree(engine, one, ids, 16, 0.1 * spread) for one, ids in zip(found, prompts, strict=True)]
    assert sum(whole) >= len(whole) // 2, "most texts are the same to their end"


def engine_logits(engine: Any, ids: list[int]) -> np.ndarray:
    sequence = engine.sequence()
    sequence.append(*ids)
    logits = engine.forward([sequence], [len(ids)])[0]
    engine.free(sequence)
    return np.asarray(logits)


@pytest.mark.parametrize(("vision", "bound"), [("F32", 5e-3), ("BF16", 0.1), ("Q8_0", 0.1)])
def test_pictures_are_seen_alike_and_read_alike(
    make: Make, llama: Any, tmp_path: Path, vision: str, bound: float
) -> None:
    """Embedding by embedding, for a picture of the tower's own size: others are resized in another way there."""
    packed = make("llava", pack={}, text=WIDE)
    done = export_gguf(packed, tmp_path / "model.gguf", replace(EXACT, vision=vision))
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    expected = embeddings(packed, pixels)
    (seen,) = llama(done.path, {"do": "see", "mmproj": str(done.mmproj), "image": str(tmp_path / "pixels.npy")})
    assert seen.shape == expected.shape == (16, 256)
    errors = distance(seen, expected)
    print(f"embeddings: median {np.median(errors):.2e}, largest {errors.max():.2e}")
    assert errors.max() < bound, "GELU of the connector in another form, from a table in fp16"
    assert distance(seen, np.roll(expected, 1, axis=0)).min() > 2 * bound, "or the order would not show"

    np.save(tmp_path / "seen.npy", seen)
    before, after = [1, 40, 41], [50, 51, 52, 2, 60]
    (logits,) = llama(done.path, {"do": "mixed", "parts": [before, str(tmp_path / "seen.npy"), after]})
    engine = mote.load(packed, kv="f32")
    slots = [engine.image_token_id] * len(seen)
    ours = engine.prefill(engine.sequence(), [*before, *slots, *after], [Picture("0" * 64, seen)])
    print(f"logits after them: {distance(logits, ours):.2e}")
    assert distance(logits, ours) < 4e-3, "experts with quantised activations here, without there"
    assert logits.argmax() == ours.argmax()


def embeddings(root: Path, pixels: np.ndarray) -> np.ndarray:
    """What tower and connector make of a picture in transformers, in fp32: [I, H]."""
    from transformers import AutoProcessor

    from mote.model.opening import open_model

    model = open_model(root, dtype=torch.float32)
    values = AutoProcessor.from_pretrained(root).image_processor(images=[pixels], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = model.model.vision_tower(values, output_hidden_states=True).hidden_states
        found = model.model.multi_modal_projector(states[model.config.vision_feature_layer])[0]
    return np.asarray(found.numpy())


QUESTIONS = (
    "What is the capital of France?",
    "12345 + 678 = ?",
    "List three colours.",
    "What's 7 times 8?",
    "Why is the sky blue?",
    "Name an animal that can fly.",
    "Write a short sentence about the sea.",
    "How many days has a week?",
)


@pytest.mark.skipif(not DEMO.exists(), reason="make demo has not been run")
@pytest.mark.parametrize(
    ("config", "bounds"),
    [
        (GgufConfig(experts="F32", **PARTS), (1e-4, 4e-3)),
        (GgufConfig(**PARTS), (2e-3, 4e-3)),
        (GgufConfig(), (8e-3, 8e-3)),
        (GgufConfig(experts="TQ1_0", shared="Q8_0", attention="Q8_0", head="Q8_0"), (4e-2, 4e-2)),
    ],
    ids=["F32", "TQ2_0 beside F32", "TQ2_0 beside BF16", "TQ1_0 beside Q8_0"],
)
def test_the_demo_answers_alike(
    reference: Any, llama: Any, tmp_path: Path, config: GgufConfig, bounds: tuple[float, float]
) -> None:
    """bounds: of the median distance from our model with activations as they come, and from our engine, which quantises
    them per token as llama.cpp does in blocks. What is printed is the table of docs/how-to/export.md."""
    export_gguf(DEMO, tmp_path / "model.gguf", config)
    model, engine = reference(DEMO.with_name("mote")), mote.load(DEMO, kv="f32")
    prompts = [list(engine.prompter.prompt(engine.prompter.question(None, text), 0)) for text in QUESTIONS]
    steps: list[dict[str, Any]] = []
    for text, ids in zip(QUESTIONS, prompts, strict=True):
        steps.append({"do": "render", "messages": [{"role": "user", "content": text}]})
        steps += [{"do": "logits", "ids": ids}, {"do": "greedy", "ids": ids, "tokens": 24}]
    found = llama(tmp_path / "model.gguf", *steps)
    errors: dict[str, list[np.ndarray]] = {"model": [], "engine": []}
    whole = 0
    for index, ids in enumerate(prompts):
        rendered, logits, greedy = found[3 * index : 3 * index + 3]
        assert rendered.tolist() == ids
        errors["model"].append(distance(logits, expected_logits(model, ids)))
        errors["engine"].append(distance(logits, engine_logits(engine, ids)))
        whole += agree(engine, greedy, ids, 24, 0.1)
    for (name, each), bound in zip(errors.items(), bounds, strict=True):
        every = np.concatenate(each)
        print(f"{name}: median {np.median(every):.1e}, largest {every.max():.1e}")
        assert np.median(every) < bound
    print(f"{whole} of {len(prompts)} greedy answers are the same to their end")
    assert whole == len(prompts)
