"""Three lines open a checkpoint of any state and answer."""

import numpy as np
import pytest
import torch
from PIL import Image

import mote
from mote.errors import CheckpointError, DataError, EngineError, MoteError, UnsupportedModelError
from mote.model.linears import tower_matrices
from mote.model.packed import PackedLinear, use_backend


@pytest.mark.parametrize("family", ["aya_vision", "llava"])
def test_every_state_answers_and_packed_answers_as_upcycled(family, checkpoints, picture):
    answers = []
    for directory in checkpoints(family):
        heard = []
        assistant = mote.load(directory)
        answer = assistant.ask(picture, "What is this", stream=heard.append, max_new_tokens=5)
        assert "".join(heard).split() == answer.split()
        assert answer == assistant.ask(picture, "What is this", max_new_tokens=5)
        answers.append(answer)
    assert answers[1] == answers[2]


def test_text_only_model_answers_without_a_picture(checkpoints, picture):
    assistant = mote.load(checkpoints("llama")[2])
    assert isinstance(assistant.ask(None, "What is this", max_new_tokens=3), str)
    with pytest.raises(UnsupportedModelError, match="without a picture"):
        assistant.ask(picture, "What is this")


def test_asking_leaves_the_model_trainable(checkpoints, picture):
    assistant = mote.load(checkpoints("aya_vision")[1])
    assistant.ask(picture, "What is this", max_new_tokens=2)
    ids = torch.tensor([[1, 5, 6, 7]])
    assistant.model.train()(input_ids=ids, labels=ids).loss.backward()


def test_pipeline_answers_as_the_assistant(checkpoints, picture):
    from transformers import pipeline

    directory = checkpoints("aya_vision")[2]
    answer = mote.load(directory).ask(picture, "What is this", max_new_tokens=4)
    pipe = pipeline("image-text-to-text", model=str(directory), device="cpu")
    content = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": "What is this"}]
    (reply,) = pipe(
        text=[{"role": "user", "content": content}], max_new_tokens=4, do_sample=False, return_full_text=False
    )
    assert reply["generated_text"].strip() == answer


def test_who_answers(checkpoints, tiny, processor, tmp_path):
    """The engine where it can; transformers for an up-cycled model, and with a reason for a family it lacks."""
    windows = tmp_path / "windows"
    tiny("qwen2", use_sliding_window=True, sliding_window=16, max_window_layers=1).save_pretrained(windows)
    processor.tokenizer.save_pretrained(windows)
    with pytest.warns(UserWarning, match="not in mote's engine: attention in sliding windows"):
        assistant = mote.load(windows)

    assert assistant.backend == "transformers"
    assert isinstance(assistant.ask(None, "What is this", max_new_tokens=2), str)
    tiny("llama").half().save_pretrained(tmp_path / "half")
    processor.tokenizer.save_pretrained(tmp_path / "half")
    with pytest.warns(UserWarning, match=r"not in mote's engine: model.embed_tokens.weight in F16; the kernels read"):
        assert mote.load(tmp_path / "half").backend == "transformers"
    assert [mote.load(root).backend for root in checkpoints("llava")] == ["native", "transformers", "native"]


def test_features_are_kept_on_disk_whoever_answers(checkpoints, picture, tmp_path):
    for root in checkpoints("llava")[1:]:
        mote.load(root, features=tmp_path / root.name).ask(picture, "What is this", max_new_tokens=1)
        assert any((tmp_path / root.name).rglob("*.*")), root.name


def test_a_picture_in_the_cache_needs_no_tower(checkpoints, picture, tmp_path):
    root = checkpoints("llava")[2]
    expected = mote.load(root, features=tmp_path / "cache").picture(picture).embeddings
    again = mote.load(root, features=tmp_path / "cache")
    again.sight.fill([picture])
    assert np.array_equal(again.picture(picture).embeddings, expected)
    assert not hasattr(again.sight._parts, "vision_tower")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "other.png")
    assert not np.array_equal(again.picture(tmp_path / "other.png").embeddings, expected)
    assert hasattr(again.sight._parts, "vision_tower")
    (note,) = (tmp_path / "cache" / "towers").iterdir()
    note.write_text("../../elsewhere")  # what is no name of a cache is none
    assert np.array_equal(mote.load(root, features=tmp_path / "cache").picture(picture).embeddings, expected)
    assert (tmp_path / "cache" / note.read_text() / "index.txt").is_file()


def test_a_tower_with_other_weights_has_its_own_cache(checkpoints, picture, tmp_path):
    from safetensors.torch import load_file, save_file

    root = checkpoints("llava")[2]
    expected = mote.load(root, features=tmp_path / "cache").picture(picture).embeddings
    tensors = load_file(root / "model.safetensors")
    for name in tensors:
        if "vision_tower" in name and name.endswith("fc1.weight"):
            tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    found = mote.load(root, features=tmp_path / "cache").picture(picture).embeddings
    assert not np.array_equal(found, expected)
    assert np.array_equal(found, mote.load(root).picture(picture).embeddings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", ["llava", "aya_vision"])
def test_a_packed_tower_sees_as_its_rounded_weights(family, dtype, checkpoints, picture, monkeypatch, tmp_path):
    monkeypatch.setattr("mote.run.picture._dtype", lambda: dtype)
    upcycled = checkpoints(family)[1]
    root = mote.pack(upcycled, tmp_path / "eyes", tower="int8", group=32)
    held, plain = mote.Checkpoint.open(root), mote.Checkpoint.open(upcycled)
    names = tower_matrices(plain.tensors)
    assert len(names) == 2 * 6
    assert all(f"{name}.packed" in held.tensors and f"{name}.weight" not in held.tensors for name in names)
    engine = mote.load(root)
    found = torch.from_numpy(engine.picture(picture).embeddings)
    tower = engine.sight._parts.vision_tower
    layouts = [module for module in tower.modules() if isinstance(module, PackedLinear)]
    assert len(layouts) == len(names)
    assert all(module.scale.dtype == torch.bfloat16 for module in layouts)
    reference = mote.load(_rounded_tower(root, upcycled, tower, tmp_path / "rounded"))
    expected = torch.from_numpy(reference.picture(picture).embeddings)
    assert 0 < (found - expected).norm() / expected.norm() < 0.02
    use_backend(tower, "reference")
    engine.sight.forget()
    assert torch.equal(torch.from_numpy(engine.picture(picture).embeddings), found)


def _rounded_tower(packed, upcycled, tower, out):
    """The up-cycled checkpoint, packed, with the weights that a packed tower stands for in its tower."""
    from safetensors.torch import load_file, save_file

    out = mote.pack(upcycled, out)
    tensors = load_file(out / "model.safetensors")
    prefix = next(name for name in tensors if "vision_tower." in name).split("vision_tower.")[0] + "vision_tower."
    for name, module in tower.named_modules():
        if isinstance(module, PackedLinear):
            tensors[f"{prefix}{name}.weight"] = module.layout.decode(module.packed, module.scale)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_the_tokens_of_a_large_vocabulary_are_not_looked_at(checkpoints, monkeypatch):
    """The whole vocabulary only where there are more tokens than embeddings; one beyond them when it is asked for."""
    root = checkpoints("llama")[2]
    words = (root / "tokenizer.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr("mote.model.opening.check_processor", None)
        assert mote.load(root).backend == "native"
    (root / "tokenizer.json").write_text(words.replace('"What": 7', '"What": 700'))
    with pytest.raises(EngineError, match="token 700 is not in the vocabulary"):
        mote.load(root).ask(None, "What is this")
    (root / "tokenizer.json").write_text(words.replace('"What": 7', '"What": 7, "more": 99, "most": 100'))
    with pytest.raises(CheckpointError, match="it has token 100, the model 99 embeddings"):
        mote.load(root)


def test_the_engine_loads_no_language_model(checkpoints, picture, monkeypatch):
    root = checkpoints("aya_vision")[2]
    engine = mote.load(root)
    monkeypatch.setattr("mote.run.assistant.open_model", None)
    engine.ask(picture, "What is this", max_new_tokens=2)
    held = {name for name, _ in engine.sight._parts.named_parameters()}
    assert held
    assert all(name.startswith(("vision_tower.", "multi_modal_projector.")) for name in held)


def test_errors_are_one_line(checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        mote.load(tmp_path / "nowhere")
    dense = checkpoints("aya_vision")[0]
    with pytest.raises(DataError, match=r"missing\.png"):
        mote.load(dense).ask(tmp_path / "missing.png", "What is this")
    with pytest.raises(DataError, match="not valid Unicode"):  # as a shell passes bytes that are no UTF-8
        mote.load(dense).ask(None, "What \udcff is this")
    with pytest.raises(MoteError, match="device='tpu'"):
        mote.load(dense, device="tpu")
    with pytest.raises(MoteError, match="use bf16 or f32"):
        mote.load(dense, kv="f16")
    with pytest.raises(UnsupportedModelError, match="int has no MoTE block"):
        mote.pack(3)
    for path in dense.iterdir():
        if "token" in path.name or "process" in path.name:
            path.unlink()
    with pytest.raises(CheckpointError, match="processor or tokenizer") as caught:
        mote.load(dense)
    assert "\n" not in str(caught.value)
