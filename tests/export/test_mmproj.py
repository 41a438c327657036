"""The vision tower's file, and where there is none the reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

from mote.checkpoint.shards import Checkpoint
from mote.errors import MoteError
from mote.export.bailingmoe import export_gguf
from mote.export.config import GgufConfig
from mote.model.opening import open_config
from mote.run.picture import load_tower

Make = Callable[..., Path]


def test_siglip_and_two_layers_go_beside_the_model(make: Make, tmp_path: Path) -> None:
    packed = make("llava")
    done = export_gguf(packed, tmp_path / "model.gguf", GgufConfig())
    assert done.mmproj == tmp_path / "mmproj-model.gguf"
    assert not done.no_mmproj
    assert any("resizes pictures in its own way" in note for note in done.notes)
    reader, opened = GGUFReader(done.mmproj), Checkpoint.open(packed)
    found = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    assert reader.fields["clip.vision.block_count"].contents() == 2, "features of layer -2 of 3: two layers run"
    assert reader.fields["clip.vision.feature_layer"].contents() == [2]
    assert reader.fields["clip.vision.image_size"].contents() == 56
    assert reader.fields["clip.vision.projection_dim"].contents() == 64
    assert reader.fields["clip.vision.image_mean"].contents() == [0.5] * 3
    assert "v.post_ln.weight" not in found
    assert not any(name.startswith("v.blk.2.") for name in found)
    names = {name.rpartition("vision_tower.")[2]: name for name in opened.tensors if "vision_tower" in name}
    pairs = {"v.patch_embd.weight": "patch_embedding.weight", "v.position_embd.weight": "position_embedding.weight"}
    pairs |= {
        "v.blk.1.ffn_down.bias": "layers.1.mlp.fc2.bias",
        "v.blk.0.attn_out.weight": "0.self_attn.out_proj.weight",
    }
    for theirs, ours in pairs.items():
        (source,) = [name for name in names.values() if name.endswith(ours)]
        np.testing.assert_array_equal(found[theirs], opened.read(source).numpy())


def test_quantised_towers_are_asked_for(make: Make, tmp_path: Path) -> None:
    done = export_gguf(make("llava"), tmp_path / "model.gguf", GgufConfig(vision="Q8_0"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(done.mmproj).tensors}
    assert kinds["v.blk.0.ffn_up.weight"] == kinds["mm.2.weight"] == "Q8_0"
    assert kinds["v.patch_embd.weight"] == kinds["v.position_embd.weight"] == kinds["mm.0.bias"] == "F32"


def test_a_new_model_without_a_tower_says_that_the_old_one_s_is_still_there(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    seeing = export_gguf(make("llava"), out, GgufConfig())
    done = export_gguf(make("qwen2"), out, GgufConfig(), force=True)
    assert f"{seeing.mmproj} is of an earlier export and does not belong to this model; remove it" in done.notes


def test_a_packed_tower_is_its_own_numbers(make: Make, tmp_path: Path) -> None:
    packed = make("llava", pack={"tower": "int8"}, vision={"hidden_size": 64, "intermediate_size": 80})
    done = export_gguf(packed, tmp_path / "model.gguf", GgufConfig())
    found = {tensor.name: tensor for tensor in GGUFReader(done.mmproj).tensors}
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert kinds["v.blk.0.ffn_up.weight"] == kinds["v.blk.1.attn_q.weight"] == "Q8_0"
    assert kinds["v.blk.0.ffn_down.weight"] == "BF16", "80 inputs are no whole number of Q8_0's blocks"
    assert "v.ffn_down: rows of 80 are no multiple of 32: BF16 instead of Q8_0" in done.notes
    assert done.types["vision"] == ["BF16", "F32", "Q8_0"]
    tower = load_tower(Checkpoint.open(packed), open_config(Checkpoint.open(packed)))
    ours = next(module for name, module in tower.named_modules() if name.endswith("layers.1.self_attn.q_proj"))
    expected = ours.layout.decode(ours.packed, ours.scale).numpy()
    q = found["v.blk.1.attn_q.weight"]
    np.testing.assert_allclose(dequantize(q.data, q.tensor_type), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "dinov2"}, "no dinov2 tower"),
        ({"hidden_act": "quick_gelu"}, "activations 'quick_gelu'"),
    ],
)
def test_a_tower_that_llama_cpp_lacks_leaves_the_text_model(
    make: Make, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    packed = make("llava")
    _edit(packed, lambda config: config["vision_config"].update(change))
    done = export_gguf(packed, tmp_path / "model.gguf", GgufConfig())
    assert done.mmproj is None
    assert reason in done.no_mmproj
    assert "the text model was exported alone" in done.no_mmproj
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == ["model.gguf"]


def test_another_connector_leaves_the_text_model(make: Make, tmp_path: Path) -> None:
    packed = make("llava")
    _edit(packed, lambda config: config.update(vision_feature_select_strategy="default"))
    done = export_gguf(packed, tmp_path / "model.gguf", GgufConfig())
    assert "features 'default'" in done.no_mmproj


def test_a_processor_for_other_pictures_is_refused(make: Make, tmp_path: Path) -> None:
    packed = make("llava")
    path = packed / "processor_config.json"
    plain = json.loads(path.read_text())
    plain["image_processor"]["size"] = {"height": 64, "width": 64}
    path.write_text(json.dumps(plain))
    _edit(packed, lambda config: None)
    with pytest.raises(MoteError, match=r"pictures of \[64\] pixels"):
        export_gguf(packed, tmp_path / "model.gguf", GgufConfig())
    assert not list(tmp_path.glob("*.gguf"))


def test_a_model_without_eyes_has_nothing_to_say(make: Make, tmp_path: Path) -> None:
    done = export_gguf(make("qwen2"), tmp_path / "model.gguf", GgufConfig())
    assert (done.mmproj, done.no_mmproj) == (None, "")


def _edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes config.json, and forgets the hashes with the lineage."""
    path = root / "config.json"
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    (root / "mote.json").unlink()
