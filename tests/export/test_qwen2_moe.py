"""The stock Qwen2-MoE checkpoint: logits of our own model, without mote."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mote.checkpoint.shards import Checkpoint
from mote.cli import run
from mote.errors import CheckpointError, UnsupportedModelError
from mote.export.config import HfConfig
from mote.export.qwen2_moe import export_qwen2_moe

Make = Callable[..., Path]
DEMO = Path(__file__).parents[2] / "runs" / "small" / "packed"
IDS = torch.tensor([[1, 17, 300, 45, 8, 9, 250, 33, 2, 64, 5, 77]])


def logits(root: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32, output_loading_info=True)
    assert type(model).__name__ == "Qwen2MoeForCausalLM"
    assert not any(info.values()), info
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("qwen2", {"top_k": 2, "normalize_gates": True}),
        ("llama", {"combine": "gated", "placement": "sparse", "top_k": 2}),
        ("llava", {}),
        ("llava-llama", {}),
    ],
)
def test_logits_are_those_of_our_model_without_quantised_activations(
    make: Make, reference: Callable[[Path], Any], tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    upcycled = make(family, pack=None, **settings)
    export_qwen2_moe(upcycled, tmp_path / "stock", HfConfig())
    with torch.no_grad():
        expected = reference(upcycled)(input_ids=IDS).logits
    error = (logits(tmp_path / "stock") - expected).abs().max()
    assert error < 1e-4
    assert expected.abs().max() > 1, "or the bound would say nothing"


def test_shared_gate_and_doubled_matrix(make: Make, tmp_path: Path) -> None:
    packed = make("llama", pack={"shared": "int8"})
    done = export_qwen2_moe(packed, tmp_path / "stock", HfConfig(dtype="bfloat16"))
    gate = done.read("model.layers.0.mlp.shared_expert_gate.weight")
    assert gate.shape == (1, 64)
    assert torch.equal(gate, torch.full((1, 64), 1e-6, dtype=torch.bfloat16))
    from mote.model.opening import open_model

    linear = open_model(packed).model.layers[0].mlp.down_proj
    weight = linear.layout.decode(linear.packed, linear.scale)
    assert torch.equal(done.read("model.layers.0.mlp.shared_expert.down_proj.weight"), (2 * weight).bfloat16())
    assert done.lineage is not None
    assert (done.lineage.verb, done.lineage.parent) == ("export", Checkpoint.open(packed).identity())
    assert json.loads((tmp_path / "stock" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_vision_model_leaves_its_processor_behind(make: Make, tmp_path: Path) -> None:
    export_qwen2_moe(make("llava"), tmp_path / "stock", HfConfig())
    names = {path.name for path in (tmp_path / "stock").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "config.json", "mote.json"} <= names
    assert not any("processor" in name for name in names)
    assert not any("vision" in name for name in Checkpoint.open(tmp_path / "stock").tensors)


def test_what_has_no_equivalent_is_refused(make: Make, tmp_path: Path) -> None:
    packed = make("llama", combine="convex")
    with pytest.raises(UnsupportedModelError, match="combine 'convex'"):
        export_qwen2_moe(packed, tmp_path / "stock", HfConfig())
    other = make("llama")
    before = sorted(path.name for path in other.iterdir())
    with pytest.raises(CheckpointError, match="is the input"):
        export_qwen2_moe(other, other, HfConfig(), force=True)
    assert sorted(path.name for path in other.iterdir()) == before


def test_the_verb(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "stock"
    assert run(["export", "hf", str(make("llama")), "--as", "qwen2_moe", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == len(Checkpoint.open(out).tensors)
    assert run(["export", "hf", str(out), "--as", "mixtral", "--out", str(tmp_path / "other")]) == 1
    assert "--as mixtral is unknown" in capsys.readouterr().err


@pytest.mark.export
@pytest.mark.skipif(not DEMO.exists(), reason="make demo has not been run")
def test_the_demos_logits(reference: Callable[[Path], Any], tmp_path: Path) -> None:
    export_qwen2_moe(DEMO, tmp_path / "stock", HfConfig())
    with torch.no_grad():
        expected = reference(DEMO.with_name("mote"))(input_ids=IDS).logits[0]
    errors = (logits(tmp_path / "stock")[0] - expected).norm(dim=-1) / expected.norm(dim=-1)
    print(f"median {errors.median():.1e}, largest {errors.max():.1e}")
    assert errors.max() < 1e-4


@pytest.mark.slow
@pytest.mark.export
def test_plain_transformers_needs_no_mote(make: Make, tmp_path: Path) -> None:
    export_qwen2_moe(make("qwen2"), tmp_path / "stock", HfConfig())
    program = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
        "ids = AutoTokenizer.from_pretrained(sys.argv[1])('What is this', return_tensors='pt').input_ids\n"
        "print(model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape[1] - ids.shape[1])\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'mote'])\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "stock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.split("\n")[:2] == ["4", "[]"]
