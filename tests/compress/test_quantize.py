"""`quantize`: one packed checkpoint, with the weights that a method gave, from every kind of model."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import mote
from mote.checkpoint.verify import verify
from mote.compress.calibration import read_calibration, text_batches
from mote.compress.config import PackConfig
from mote.compress.methods import awq, gptq
from mote.compress.quantize import quantize_checkpoint
from mote.compress.quantize_config import QuantizeConfig
from mote.compress.stream import pack_checkpoint, what_to_pack
from mote.compress.walk import walk, walk_memory
from mote.errors import CheckpointError, DataError, FormatError, RecipeError
from mote.model.block import blocks
from mote.model.opening import open_model, open_processor
from mote.model.packed import PackedLinear
from mote.model.table import PackedEmbedding
from mote.ternary.integers import PackedTensors

ALL = {"shared": "int4", "attention": "int8", "head": "int4", "group": 32}


def _missing(name):
    raise ImportError(f"No module named {name!r}")


def _settings(kind, **more):
    parts = {"shared": "none", "experts": "int3"} if kind == "moe_llava" else {}
    return QuantizeConfig(**{**ALL, **parts, "samples": 8, **more})


def _loaded(path, family):
    auto = AutoModelForImageTextToText if family in ("llava", "aya_vision") else AutoModelForCausalLM
    return auto.from_pretrained(path)


def _decoded(model):
    """Name of every matrix that is packed in integers -> its weights."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedEmbedding) and module.layout.format.bits:
            found[f"{name}.weight"] = module.layout.decode(module.packed, module.scale, module.zero)
    for block in blocks(model):
        for name, layout in getattr(block.experts, "layouts", {}).items():
            if layout.format.bits:
                parts = [getattr(block.experts, f"{name}_{part}") for part in PackedTensors._fields]
                experts = zip(*(part if part is not None else [None] * 4 for part in parts), strict=True)
                key = next(key for key, module in model.named_modules() if module is block.experts)
                found[f"{key}.{name}"] = torch.stack([layout.decode(*one) for one in experts])
    return found


@pytest.mark.parametrize(
    ("family", "kind", "method"),
    [
        ("llava", "dense", "gptq"),
        ("aya_vision", "mote", "gptq"),
        ("aya_vision", "mote", "awq"),
        ("llava", "moe_llava", "gptq"),
        ("llama", "moe_llava", "awq"),
    ],
)
def test_a_file_holds_what_the_walk_left_in_the_model(family, method, kind, source, write_mix, tmp_path):
    checkpoint, data = source(family, kind), write_mix(pictures=family in ("llava", "aya_vision"))
    config = _settings(kind, method=method, symmetric=method == "awq")
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    written = quantize_checkpoint(checkpoint, tmp_path / "out", config, calibration=data)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert verify(written.root).problems == []
    model = open_model(checkpoint)
    contract = what_to_pack(mote.Checkpoint.open(checkpoint), config)[0].contract
    told, settings = [], {"samples": 8, "max_length": 512, "seed": 0}
    processor = open_processor(checkpoint, model)
    read = read_calibration(data, model, processor, **settings, progress=lambda *pictures: told.append(pictures))
    assert sum(count for count, _ in told) == read.pictures
    assert {total for _, total in told} <= {read.pictures}
    walk(model, contract, read.batches, gptq.Gptq() if method == "gptq" else awq.Awq(read.tokens), keep=True)
    quantized = dict(model.named_parameters())
    decoded = _decoded(loaded := _loaded(written.root, family))
    networks = 0 if kind == "moe_llava" else 3
    assert len(decoded) == 2 * (4 + networks) + 1 + (2 * 3 if kind == "moe_llava" else 0)
    for name, weight in decoded.items():
        assert torch.equal(weight, quantized[name]), name
    assert not any(module.layout.format.bits and module.zero is None for module in _linears(loaded)) or method == "awq"
    lineage = json.loads((written.root / "mote.json").read_text())
    assert lineage["config"]["method"] == method
    assert lineage["inputs"]["calibration"] == read.sha256
    report = json.loads((written.root / "quantize.json").read_text())
    assert report["library"].startswith("neural-compressor 3")
    assert report["calibration"]["tokens"] == read.tokens > 8 * 8


@pytest.mark.parametrize("method", ["gptq", "hqq"])
def test_a_tower_is_rounded_whatever_the_method(method, source, write_mix, tmp_path):
    """The head is not the embedding here: what calibration found for it is not the tower's."""
    checkpoint = source("llava", "dense")
    config = _settings("dense", method=method, symmetric=method == "gptq", tower="int8")
    data = write_mix() if config.calibrated else None
    written = quantize_checkpoint(checkpoint, tmp_path / "out", config, calibration=data)
    assert written.mote.tower.scale == "absmax"
    rounded = mote.pack(checkpoint, tmp_path / "rounded", tower="int8", group=32, symmetric=config.symmetric)
    rounded = mote.Checkpoint.open(rounded)
    names = [name for name in written.tensors if "vision_tower" in name]
    assert sum(name.endswith(".packed") for name in names) == 2 * 6
    for name in names:
        assert torch.equal(written.read(name), rounded.read(name)), name


def _linears(model):
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize(
    ("kind", "method", "symmetric"),
    [("dense", "hqq", False), ("mote", "rtn", True), ("moe_llava", "rtn", False), ("moe_llava", "hqq", False)],
)
def test_methods_without_data(method, symmetric, kind, source, tmp_path):
    checkpoint = source("llama", kind)
    config = _settings(kind, method=method, symmetric=symmetric)
    written = quantize_checkpoint(checkpoint, tmp_path / "out", config)
    assert verify(written.root).problems == []
    assert written.mote.attention.scale == ("given" if method == "hqq" else "absmax")
    loaded = _loaded(written.root, "llama")
    plain = dict(open_model(checkpoint).named_parameters())
    decoded = _decoded(loaded)
    for name, weight in decoded.items():
        assert (weight - plain[name]).norm() / plain[name].norm() < (0.25 if ".experts." in name else 0.13), name
    with torch.no_grad():
        logits = loaded(input_ids=torch.tensor([[1, 7, 9, 30]])).logits
    assert torch.isfinite(logits).all()
    if method == "rtn":
        packed = mote.pack(checkpoint, tmp_path / "packed", **_pack_options(config))
        for name in mote.Checkpoint.open(packed).tensors:
            assert torch.equal(mote.Checkpoint.open(packed).read(name), written.read(name)), name


def _pack_options(config):
    return {name: getattr(config, name) for name in ("shared", "attention", "head", "experts", "group", "symmetric")}


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_what_is_not_asked_for_stays_to_the_bit(method, source, write_mix, tmp_path):
    """Ternary experts, routers, norms, embedding and connector are those of `mote pack`."""
    checkpoint = source("aya_vision", "mote")
    config = QuantizeConfig(method=method, group=32, samples=6)
    written = quantize_checkpoint(checkpoint, tmp_path / "out", config, calibration=write_mix())
    packed = mote.Checkpoint.open(mote.pack(checkpoint, tmp_path / "packed", shared="int4", group=32))
    assert written.tensors.keys() == packed.tensors.keys()
    same = [name for name in packed.tensors if torch.equal(packed.read(name), written.read(name))]
    changed = packed.tensors.keys() - set(same)
    assert changed
    assert all(".mlp." in name and ".experts." not in name and "router" not in name for name in changed)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_experts_are_calibrated_on_their_own_tokens(source, write_mix, precision):
    checkpoint = source("llama", "moe_llava")
    model = open_model(checkpoint)
    contract = what_to_pack(mote.Checkpoint.open(checkpoint), _settings("moe_llava", method="gptq"))[0].contract
    processor = open_processor(checkpoint, model)
    read = read_calibration(write_mix(pictures=False), model, processor, samples=8, max_length=512, seed=0)
    seen = {}

    class Counting(gptq.Gptq):
        def network(self, weights, inputs, fmt):
            seen[tuple(weights["up_proj"].flatten()[:4].tolist())] = inputs["up_proj"]
            return weights

    expected = {}
    with torch.no_grad():
        for block in blocks(model):
            block.experts.watch = None
    first = blocks(model)[0]
    keys = [tuple(matrix.flatten()[:4].tolist()) for matrix in first.experts.up_proj]
    router = copy.deepcopy(first.router)
    reads = []
    handle = first.register_forward_pre_hook(lambda module, args: reads.append(args[0].flatten(0, -2).clone()))
    walk(model, contract, read.batches, Counting(), keep=True, precision=precision)
    handle.remove()
    h_TH = torch.cat(reads[: len(read.batches)])
    chosen = router(h_TH).expert_Tk
    for expert, key in enumerate(keys):
        x = h_TH[(chosen == expert).any(1)]
        expected[key] = x.t() @ x
        assert seen[key].rows == len(x)
        found = seen[key].hessian()
        torch.testing.assert_close(found / found.norm(), expected[key] / expected[key].norm(), rtol=1e-3, atol=1e-5)


def test_experts_that_no_token_went_to_are_named_and_rounded(source, write_mix, tmp_path):
    from safetensors.torch import load_file, save_file

    dense = source("llama", "dense")
    options = {"config": "moe-llava", "initialise": "random", "num_experts": 5}
    checkpoint = mote.upcycle(dense, tmp_path / "five", **options)
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    # One feature decides: above 0 the best two are experts 0 and 1, below it 2 and 3.
    tensors["model.layers.1.post_attention_layernorm.weight"][1:] = 0
    tensors["model.layers.1.mlp.router.weight"][:, 0] = torch.tensor([2.0, 1.0, -2.0, -1.0, 0.0])
    save_file(tensors, file, metadata={"format": "pt"})
    config = QuantizeConfig(method="gptq", shared="none", experts="int4", group=32, samples=8)
    data = write_mix(pictures=False)
    with pytest.warns(UserWarning, match=r"\(layer 1: 4\)"):
        written = quantize_checkpoint(checkpoint, tmp_path / "out", config, calibration=data)
    assert json.loads((written.root / "quantize.json").read_text())["not_routed"] == {"1": [4]}
    packed = mote.Checkpoint.open(mote.pack(checkpoint, tmp_path / "packed", experts="int4", group=32))
    name = "model.layers.1.mlp.experts.up_proj_packed"
    for expert in range(5):
        assert torch.equal(packed.read(name)[expert], written.read(name)[expert]) == (expert == 4)


def test_ternary_experts_that_no_token_went_to_are_named(source, tmp_path):
    checkpoint = mote.upcycle(source("llama", "dense"), tmp_path / "three", initialise="random", num_experts=3)
    model = open_model(checkpoint)
    for block in blocks(model):
        block.router.weight.data.zero_()  # a tie, which the first wins
    config = QuantizeConfig(method="gptq", group=32)
    contract = what_to_pack(mote.Checkpoint.open(checkpoint), config)[0].contract
    batches = text_batches(range(3, 51), window=12, count=4)
    assert walk(model, contract, batches, gptq.Gptq()).not_routed == {0: [1, 2], 1: [1, 2]}


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_memory_of_a_walk_is_what_it_keeps(name, source, monkeypatch):
    checkpoint = source("llama", "moe_llava")
    model = open_model(checkpoint)
    config = QuantizeConfig(method="gptq", shared="none", attention="int8", experts="int4", group=32)
    contract = what_to_pack(mote.Checkpoint.open(checkpoint), config)[0].contract
    batches = text_batches(range(3, 99), window=12, count=8)
    method, kept = gptq.Gptq() if name == "gptq" else awq.Awq(tokens=96), []
    inputs = type(method).inputs

    def recorded(self, *arguments):
        kept.append(inputs(self, *arguments))
        return kept[-1]

    monkeypatch.setattr(type(method), "inputs", recorded)
    needs = walk_memory(model, contract, batches, method)
    walk(model, contract, batches, method)
    layer = kept[: len(kept) // 2]
    if name == "gptq":
        sizes = [4 * len(one.hessian()) ** 2 for one in layer]
        expected = sum(sizes) + 4 * max(sizes)
    else:
        expected = sum(part.numel() * 4 for one in layer for part in one._kept)
    hidden, widest = 4 * 96 * model.config.hidden_size, model.config.intermediate_size
    activations = 4 * 4 * 48 * widest  # batches are of four windows
    assert needs.working - hidden - activations == pytest.approx(expected, rel=0.1)


def test_experts_without_shared_ones_are_asked_for_by_name(source, tmp_path):
    checkpoint, out = source("llama", "moe_llava"), tmp_path / "out"
    with pytest.raises(FormatError, match="say experts=int4"):
        quantize_checkpoint(checkpoint, out, QuantizeConfig(group=32))
    for config in (QuantizeConfig(shared="int3", experts="int3", group=32), PackConfig(shared="int3", group=32)):
        with pytest.raises(FormatError, match="has no shared experts; say experts=int3"):
            pack_checkpoint(checkpoint, out, config)
    written = quantize_checkpoint(checkpoint, out, QuantizeConfig(experts="int3", group=32))
    assert (written.mote.shared.quantizer, written.mote.routed.quantizer) == ("none", "int3")


def test_a_shared_expert_on_another_grid_than_asked_for_is_refused(source, tmp_path):
    checkpoint = mote.upcycle(source("llama", "dense"), tmp_path / "trained", shared=mote.WeightFormat())
    with pytest.raises(FormatError, match="was trained as ternary"):
        quantize_checkpoint(checkpoint, tmp_path / "out", QuantizeConfig(shared="int4", group=32))


@pytest.mark.parametrize("quantizer", ["int4", "ternary"])
def test_a_shared_expert_trained_on_a_grid_stays_on_it(quantizer, source, write_mix, tmp_path):
    grid = {"scale": "absmax", "granularity": "group", "group": 32} if quantizer == "int4" else {}
    shared = mote.WeightFormat(quantizer=quantizer, **grid)
    checkpoint = mote.upcycle(source("llama", "dense"), tmp_path / "trained", shared=shared)
    config = QuantizeConfig(method="gptq", attention="int3", group=32, samples=6)
    data = write_mix(pictures=False)
    written = quantize_checkpoint(checkpoint, tmp_path / "out", config, calibration=data)
    packed = mote.Checkpoint.open(mote.pack(checkpoint, tmp_path / "packed", attention="int3", group=32))
    assert (written.mote.shared, written.mote.attention.scale) == (packed.mote.shared, "given")
    changed = {name for name in packed.tensors if not torch.equal(packed.read(name), written.read(name))}
    assert changed
    assert all(".self_attn." in name for name in changed)


def test_untied_heads_are_calibrated_and_tied_tables_rounded(tiny):
    for family, tied in (("llama", False), ("qwen2", True)):
        model = tiny(family)
        config = QuantizeConfig(shared="none", head="int3", group=32, method="gptq")
        contract = config.contract(None, family)
        weight = model.lm_head.weight.clone()
        nearest = mote.pack(copy.deepcopy(model), head="int3", group=32)
        table = nearest.get_input_embeddings() if tied else nearest.lm_head
        rounded = table.layout.decode(table.packed, table.scale, table.zero)
        walk(model, contract, text_batches(range(3, 99), window=12, count=8), gptq.Gptq(), keep=True)
        assert not torch.equal(model.lm_head.weight, weight)
        assert torch.equal(model.lm_head.weight, rounded) == tied


class Nearest(awq.Awq):
    """AWQ that moves no scale."""

    def network(self, weights, inputs, fmt):
        return weights


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_weights_are_closer_in_what_the_model_says(method, tiny):
    model = tiny("llama", hidden_size=64, intermediate_size=96, head_dim=16, vocab_size=99)
    drawn = torch.randint(3, 99, (40, 24), generator=torch.Generator().manual_seed(0))
    batches, ids = text_batches(drawn[:32].flatten().tolist(), window=24, count=32), drawn[32:]
    with torch.no_grad():
        logits = {"none": model(input_ids=ids).logits}
    for kind in ("rtn", method):
        config = QuantizeConfig(shared="int3", group=32, method=kind)
        other = copy.deepcopy(model)
        chosen = {"rtn": Nearest(tokens=1), "gptq": gptq.Gptq(), "awq": awq.Awq(tokens=32 * 24)}[kind]
        walk(other, config.contract(None, "tiny"), batches, chosen, keep=True)
        with torch.no_grad():
            logits[kind] = other(input_ids=ids).logits
    error = {kind: float((logits[kind] - logits["none"]).norm()) for kind in ("rtn", method)}
    assert error[method] < error["rtn"]


def test_bad_input_is_one_line_and_leaves_nothing(source, write_mix, tmp_path, monkeypatch):
    checkpoint, out = source("aya_vision", "mote"), tmp_path / "out"
    config = QuantizeConfig(method="gptq", group=32, samples=4)

    def refused(kind, match, checkpoint=checkpoint, config=config, **options):
        with pytest.raises(kind, match=match) as caught:
            quantize_checkpoint(checkpoint, out, config, **options)
        assert "\n" not in str(caught.value)
        assert not out.exists()
        assert not list(tmp_path.glob("out.partial*"))

    refused(RecipeError, "give --calibration")
    rounding = QuantizeConfig(group=32)
    refused(RecipeError, "method rtn reads no data; say --method gptq", config=rounding, calibration=write_mix())
    refused(DataError, "no such file", calibration=tmp_path / "absent.jsonl")
    refused(DataError, "none of 4 conversations has a picture", calibration=write_mix(pictures=False))
    data = write_mix()
    for picture in data.parent.glob("*.png"):
        picture.write_bytes(b"no picture")
    refused(DataError, "not a picture that can be read", calibration=data)
    data = write_mix()
    refused(
        DataError,
        "no answer fits into max_length=6",
        config=QuantizeConfig(method="gptq", group=32, max_length=6),
        calibration=data,
    )
    # Before anything is loaded, and not after the calibration.
    monkeypatch.setattr("mote.compress.quantize.open_model", lambda path: pytest.fail("opened"))
    monkeypatch.setattr("mote.checkpoint.atomic.shutil.disk_usage", lambda path: type("", (), {"free": 10})())
    refused(CheckpointError, "free space there", calibration=data)
    monkeypatch.undo()
    monkeypatch.setattr("mote.compress.quantize.open_model", lambda path: pytest.fail("opened"))
    monkeypatch.setattr("mote.compress.methods.libraries.import_module", _missing)
    refused(RecipeError, r"pip install .mote-lmm\[quantize\]", calibration=data)
    monkeypatch.undo()
    packed = mote.pack(checkpoint, tmp_path / "packed")
    refused(CheckpointError, "is packed already", checkpoint=packed, calibration=data)
    out.mkdir()
    (out / "precious").write_text("here first")
    with pytest.raises(CheckpointError, match="exists already"):
        quantize_checkpoint(checkpoint, out, config, calibration=data)
    assert [path.name for path in out.iterdir()] == ["precious"]


def test_an_interrupted_write_leaves_source_and_place_as_they_were(source, write_mix, tmp_path, monkeypatch):
    checkpoint, data = source("llama", "mote"), write_mix(pictures=False)
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    original = mote.Checkpoint.read

    def read(self, name, *, finite=False):
        if "norm" in name:
            raise KeyboardInterrupt
        return original(self, name, finite=finite)

    monkeypatch.setattr(mote.Checkpoint, "read", read)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(
            checkpoint, tmp_path / "out", QuantizeConfig(method="gptq", group=32, samples=4), calibration=data
        )
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert not list(tmp_path.glob("out*"))


def test_settings_that_make_no_sense(tmp_path):
    with pytest.raises(RecipeError, match="say --asymmetric"):
        QuantizeConfig(method="hqq")
    with pytest.raises(
        RecipeError, match="'int5' is not one of 'none', 'int2', 'int3', 'int4', 'int6', 'int8', 'auto'"
    ):
        mote.quantize(tmp_path / "none", tmp_path / "out", shared="int5")
    with pytest.raises(RecipeError, match="method='magic'"):
        QuantizeConfig(method="magic")
    with pytest.raises(RecipeError, match="samples=0"):
        QuantizeConfig(samples=0)


def test_text_models_take_no_pictures(source, write_mix, tmp_path):
    with pytest.raises(DataError, match="has no vision tower"):
        quantize_checkpoint(
            source("llama", "dense"), tmp_path / "out", QuantizeConfig(method="awq", group=32), calibration=write_mix()
        )


@pytest.mark.parametrize(("kind", "method"), [("dense", "awq"), ("moe_llava", "gptq"), ("mote", "hqq")])
def test_the_engine_says_what_transformers_says(kind, method, source, write_mix, tmp_path):
    from mote.model.opening import open_config
    from mote.run.compare import Text, compare
    from mote.run.decoding import Decoding
    from mote.run.weights import Weights

    checkpoint = source("llama", kind, hidden_size=64, intermediate_size=96, head_dim=16)
    config = _settings(kind, method=method, symmetric=False)
    data = write_mix(pictures=False) if config.calibrated else None
    written = quantize_checkpoint(checkpoint, tmp_path / "out", config, calibration=data)
    engine = Decoding(Weights(written, open_config(written), kv="f32"), positions=2048, threads=1)
    found = compare(written.root, engine, [Text(ids=range(5, 45)), Text(ids=range(60, 20, -1))])
    assert found.unflipped > 40
    assert found.largest_error < 1e-2
    assert found.median_error < 1e-4
