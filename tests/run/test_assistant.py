"""Three lines open a checkpoint of any state and answer."""

import pytest
import torch
from PIL import Image

import mote
from mote.errors import CheckpointError, DataError, MoteError, UnsupportedModelError


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.radial_gradient("L").resize((40, 30)).convert("RGB").save(path)
    return path


@pytest.fixture
def checkpoints(tiny, processor, tmp_path):
    def make(family):
        dense = tmp_path / "dense"
        tiny(family).save_pretrained(dense)
        (processor if family in ("llava", "aya_vision") else processor.tokenizer).save_pretrained(dense)
        upcycled = mote.upcycle(dense, tmp_path / "upcycled")
        return dense, upcycled, mote.pack(upcycled, tmp_path / "packed")

    return make


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
    with pytest.raises(UnsupportedModelError, match="int has no MoTE block"):
        mote.pack(3)
    for path in dense.iterdir():
        if "token" in path.name or "process" in path.name:
            path.unlink()
    with pytest.raises(CheckpointError, match="processor or tokenizer") as caught:
        mote.load(dense)
    assert "\n" not in str(caught.value)
