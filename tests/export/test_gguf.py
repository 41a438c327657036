"""The GGUF file of small checkpoints, read by gguf's own reader."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

import mote
from mote.checkpoint.shards import Checkpoint
from mote.cli import run
from mote.errors import CheckpointError, FormatError, MoteError, UnsupportedModelError
from mote.export.bailingmoe import export_gguf, interleaved
from mote.export.config import GgufConfig
from mote.ternary.format import WeightFormat

EXACT = GgufConfig(experts="F32", shared="F32", attention="F32", head="F32")
Make = Callable[..., Path]


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def values(tensor: Any) -> np.ndarray:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return np.asarray(dequantize(tensor.data, tensor.tensor_type)).reshape(shape)


def field(path: Path, key: str) -> Any:
    return GGUFReader(path).fields[key].contents()


def hashes(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.iterdir())}


def test_a_file_holds_what_the_checkpoint_holds(make: Make, tmp_path: Path) -> None:
    packed = make("qwen2")
    before, out = hashes(packed), tmp_path / "model.gguf"
    done = export_gguf(packed, out, GgufConfig())
    assert hashes(packed) == before
    assert [path.name for path in tmp_path.iterdir() if "model" in path.name] == ["model.gguf"]
    assert done.nbytes == out.stat().st_size
    assert done.types["experts"] == ["Q4_0", "TQ2_0"], "rows of 64 do not fit in TQ2_0, those of 256 do"
    assert done.notes == [
        "ffn_gate_exps, ffn_up_exps: rows of 64 are no multiple of 256: Q4_0 instead of TQ2_0, the same numbers"
    ]

    opened, found = Checkpoint.open(packed), tensors(out)
    assert found["blk.0.ffn_up_exps.weight"].tensor_type.name == "Q4_0"
    assert found["blk.0.ffn_down_exps.weight"].tensor_type.name == "TQ2_0"
    scale = opened.read("model.layers.1.mlp.experts.down_proj_scale").numpy().astype(np.float16).astype(np.float32)
    q = mote_integers(opened, "model.layers.1.mlp.experts.down_proj", 64, 256)
    np.testing.assert_array_equal(values(found["blk.1.ffn_down_exps.weight"]), q * scale[:, None, None])
    plain = {"blk.1.ffn_gate_inp.weight": "model.layers.1.mlp.router.weight", "output_norm.weight": "model.norm.weight"}
    plain |= {"blk.0.attn_v.bias": "model.layers.0.self_attn.v_proj.bias", "output.weight": "lm_head.weight"}
    plain |= {"blk.1.ffn_gate_shexp.weight": "model.layers.1.mlp.gate_proj.weight"}
    for theirs, ours in plain.items():
        np.testing.assert_array_equal(values(found[theirs]), opened.read(ours).float().numpy())

    expected = {
        "general.architecture": "bailingmoe",
        "bailingmoe.block_count": 2,
        "bailingmoe.attention.head_count_kv": 2,
        "bailingmoe.rope.dimension_count": 16,
        "bailingmoe.expert_count": 4,
        "bailingmoe.expert_used_count": 1,
        "bailingmoe.expert_weights_norm": False,
        "bailingmoe.expert_shared_count": 1,
        "tokenizer.ggml.pre": "gpt-2",
        "mote.checkpoint": opened.identity(),
    }
    assert {key: field(out, key) for key in expected} == expected


def mote_integers(opened: Checkpoint, stack: str, rows: int, cols: int) -> np.ndarray:
    from mote.ternary.codecs import CODECS

    assert opened.mote is not None
    codec = CODECS[str(opened.mote.codec)]
    return codec.unpack(opened.read(f"{stack}_packed"), rows, cols).numpy()


def test_permuted_rows_turn_as_the_halves_did() -> None:
    """Rotating neighbours of the permuted rows is permuting the rows that were rotated by halves."""
    heads, size = 3, 8
    x = torch.randn(heads * size, generator=torch.Generator().manual_seed(0)).view(heads, size)
    angle = torch.arange(size // 2) * 0.7 + 0.3
    cos, sin = angle.cos(), angle.sin()
    low, high = x[:, : size // 2], x[:, size // 2 :]
    halves = torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
    order = torch.from_numpy(interleaved(heads * size, size))
    y = x.reshape(-1)[order].view(heads, size)
    even, odd = y[:, ::2], y[:, 1::2]
    neighbours = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    torch.testing.assert_close(neighbours.reshape(-1), halves.reshape(-1)[order], rtol=0, atol=0)


def test_queries_and_keys_and_their_biases_are_permuted(make: Make, tmp_path: Path) -> None:
    packed, out = make("qwen2", pack={"attention": "int8"}), tmp_path / "model.gguf"
    assert export_gguf(packed, out, GgufConfig()).types["attention"] == ["Q8_0"]
    found, opened = tensors(out), Checkpoint.open(packed)
    for short, rows in (("q", 64), ("k", 32)):
        order = interleaved(rows, 16)
        bias = opened.read(f"model.layers.0.self_attn.{short}_proj.bias").float().numpy()
        np.testing.assert_array_equal(values(found[f"blk.0.attn_{short}.bias"]), bias[order])
        model = mote.model.opening.open_model(packed, dtype=torch.float32)
        linear = model.model.layers[0].self_attn.get_submodule(f"{short}_proj")
        weight = linear.layout.decode(linear.packed, linear.scale).numpy()
        np.testing.assert_array_equal(values(found[f"blk.0.attn_{short}.weight"]), weight[order])


@pytest.mark.parametrize("combine", ["add", "gated"])
def test_an_upcycled_checkpoint_gives_the_file_of_the_packed_one(make: Make, tmp_path: Path, combine: str) -> None:
    upcycled = make("llama", pack=None, combine=combine)
    packed = mote.pack(upcycled, tmp_path / "packed")
    files = [tmp_path / f"{name}.gguf" for name in "ab"]
    for root, out in zip((upcycled, packed), files, strict=True):
        export_gguf(root, out, GgufConfig())
    first, second = map(tensors, files)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor.data, second[name].data)


@pytest.mark.parametrize(
    ("pack", "kind"),
    [
        ({"shared": "int3"}, "Q4_0"),
        ({"shared": "int4"}, "Q4_0"),
        ({"shared": "int6"}, "Q8_0"),
        ({"shared": "int8", "group": 32}, "Q8_0"),
    ],
)
def test_packed_shared_experts_keep_their_integers(make: Make, tmp_path: Path, pack: dict[str, Any], kind: str) -> None:
    packed, out = make("llama", pack=pack), tmp_path / "model.gguf"
    done = export_gguf(packed, out, GgufConfig())
    assert done.types["shared"] == [kind]
    assert not any("shexp" in note for note in done.notes)
    linear = mote.model.opening.open_model(packed, dtype=torch.float32).model.layers[1].mlp.down_proj
    weight = linear.layout.decode(linear.packed, linear.scale).numpy()
    np.testing.assert_array_equal(values(tensors(out)["blk.1.ffn_down_shexp.weight"]), weight)

    again = tmp_path / "again.gguf"
    notes = export_gguf(packed, again, GgufConfig(shared="BF16")).notes
    assert any("ffn_down_shexp: int" in note and "rounded to BF16" in note for note in notes)


def test_zero_points_are_multiplied_out(make: Make, tmp_path: Path) -> None:
    packed, out = make("llama", pack={"shared": "int4", "symmetric": False}), tmp_path / "model.gguf"
    done = export_gguf(packed, out, GgufConfig(shared="F32"))
    linear = mote.model.opening.open_model(packed, dtype=torch.float32).model.layers[1].mlp.down_proj
    weight = linear.layout.decode(linear.packed, linear.scale, linear.zero).numpy()
    np.testing.assert_array_equal(values(tensors(out)["blk.1.ffn_down_shexp.weight"]), weight)

    done = export_gguf(packed, tmp_path / "auto.gguf", GgufConfig())
    assert done.types["shared"] == ["BF16"]
    assert any("ffn_down_shexp: int4 multiplied out" in note for note in done.notes)


def test_a_tied_table_stands_twice(make: Make, tmp_path: Path) -> None:
    packed, out = make("llama", pack={"head": "int8"}), tmp_path / "model.gguf"
    assert export_gguf(packed, out, GgufConfig()).types["head"] == ["Q8_0"]
    table = mote.model.opening.open_model(packed, dtype=torch.float32).get_input_embeddings()
    weight = table.layout.decode(table.packed, table.scale).numpy()
    for name in ("token_embd.weight", "output.weight"):
        np.testing.assert_array_equal(values(tensors(out)[name]), weight)


def test_group_scales_that_tq_cannot_hold_are_said(make: Make, tmp_path: Path) -> None:
    fmt = WeightFormat(scale="lloyd_max", granularity="group", group=64)
    packed, out = make("llama", routed=fmt), tmp_path / "model.gguf"
    done = export_gguf(packed, out, GgufConfig())
    assert done.types["experts"] == ["Q4_0"]
    assert any(
        "ffn_up_exps: a scale" in note or "ffn_down_exps: a scale per 64 inputs cuts" in note for note in done.notes
    )
    scale = Checkpoint.open(packed).read("model.layers.0.mlp.experts.down_proj_scale").numpy()
    found = values(tensors(out)["blk.0.ffn_down_exps.weight"])
    assert set(np.unique(np.abs(found[0, 0, :64]))) <= {0.0, np.float32(np.float16(scale[0, 0, 0]))}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"combine": "convex"}, "combine 'convex'"),
    ("llama", {"shared_expert": False}, "no shared expert"),
    ("llama", {"placement": "sparse"}, "layers 1 and 0 more have no mixture.*qwen2_moe"),
    ("llama", {"text": {"attention_bias": True}}, "o_proj.bias has no place"),
    ("llama", {"text": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}}, "'dynamic'"),
    ("qwen2", {"text": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}}, "sliding windows"),
]


@pytest.mark.parametrize(("family", "settings", "reason"), REFUSED)
def test_what_has_no_equivalent_is_refused(
    make: Make, tmp_path: Path, family: str, settings: dict[str, Any], reason: str
) -> None:
    packed = make(family, **settings)
    with pytest.raises(UnsupportedModelError, match=reason):
        export_gguf(packed, tmp_path / "model.gguf", GgufConfig())
    assert not list(tmp_path.glob("model*"))


def test_other_states_and_altered_bytes_are_refused(make: Make, tmp_path: Path, tiny: Any) -> None:
    tiny("llama").save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="is dense"):
        export_gguf(tmp_path / "dense", tmp_path / "model.gguf", GgufConfig())
    packed = make("llama")
    weights = packed / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="altered"):
        export_gguf(packed, tmp_path / "model.gguf", GgufConfig())
    assert not (tmp_path / "model.gguf").exists()


def test_weights_that_are_not_finite_are_named(make: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    upcycled = make("llama", pack=None)
    held = load_file(upcycled / "model.safetensors")
    held["model.layers.1.mlp.experts.up_proj"][2, 5, 5] = float("nan")
    save_file(held, upcycled / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.experts.up_proj' holds 1 NaN or Inf"):
        export_gguf(upcycled, tmp_path / "model.gguf", GgufConfig())
    assert not list(tmp_path.glob("model*"))


def test_floats_do_not_go_into_ternary_types(make: Make, tmp_path: Path) -> None:
    upcycled = make("llama", pack=None, routed=WeightFormat(quantizer="none", activation="none"))
    with pytest.raises(FormatError, match=r"ffn_gate_exps: TQ2_0 holds -1, 0, 1, and these are floats; choose Q8_0"):
        export_gguf(upcycled, tmp_path / "model.gguf", GgufConfig())
    assert export_gguf(upcycled, tmp_path / "model.gguf", GgufConfig(experts="Q8_0")).types["experts"] == ["Q8_0"]


def test_a_full_disk_leaves_what_was_there(make: Make, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    packed, out = make("llama"), tmp_path / "model.gguf"
    out.write_text("precious")
    with pytest.raises(CheckpointError, match="exists already"):
        export_gguf(packed, out, EXACT)
    request.getfixturevalue("small_files")
    with pytest.raises(CheckpointError, match="cannot be written: File too large; nothing there was changed"):
        export_gguf(packed, out, EXACT, force=True)
    assert out.read_text() == "precious"
    assert [path.name for path in tmp_path.glob("model*")] == ["model.gguf"]


def test_a_failure_on_the_way_leaves_nothing(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, seen = make("llama"), []

    def stop(count: int, total: int) -> None:
        seen.append(count)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(packed, tmp_path / "model.gguf", GgufConfig(), progress=stop)
    assert not list(tmp_path.glob("model*"))
    with pytest.raises(CheckpointError, match="lies in the input"):
        export_gguf(packed, packed / "model.gguf", GgufConfig())
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(FormatError, match=r"pip install 'mote-lmm\[export\]'"):
        export_gguf(packed, tmp_path / "model.gguf", GgufConfig())


def test_the_verb_says_what_it_wrote(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, out = make("llama"), tmp_path / "model.gguf"
    assert run(["export", "gguf", str(packed), "--out", str(out), "--experts", "TQ1_0", "--head", "Q8_0"]) == 0
    text = capsys.readouterr().out
    assert "head Q8_0" in text
    assert "experts Q4_0 and TQ1_0" in text
    assert "note: ffn_gate_exps" in text
    assert run(["export", "gguf", str(packed), "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert run(["export", "gguf", str(packed), "--out", str(out), "--experts", "Q5_K"]) == 1
    assert "experts='Q5_K' is unknown" in capsys.readouterr().err


def test_settings_are_checked() -> None:
    for wrong in ({"experts": "auto"}, {"vision": "TQ2_0"}, {"shared": "f32"}):
        with pytest.raises(MoteError, match="is unknown; use one of"):
            GgufConfig(**wrong)
