"""The engine computes what transformers computes."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mote
from mote.checkpoint.shards import Checkpoint
from mote.errors import EngineError
from mote.model.opening import open_config, open_model
from mote.run.compare import Text, compare
from mote.run.decoding import Decoding
from mote.run.weights import Weights

IDS = torch.randint(3, 90, (90,), generator=torch.Generator().manual_seed(0)).tolist()


def decoding(root: Any, kv: str = "f32", **options: Any) -> Decoding:
    checkpoint = Checkpoint.open(root)
    options = {"positions": 2048, "threads": 1, **options}
    return Decoding(Weights(checkpoint, open_config(checkpoint), kv=kv), **options)


def all_logits(engine: Decoding, ids: list[int]) -> np.ndarray:
    sequence = engine.sequence()
    engine.add(sequence, ids)
    logits = engine.forward([sequence], [sequence.num_waiting])[0]
    engine.free(sequence)
    return logits


def plain_logits(root: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return open_model(root)(input_ids=torch.tensor([ids])).logits[0].float().numpy()


def close(got: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    distance = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return bool((distance < tolerance).all())


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "2bit rows": {"codec": "2bit", "routed": mote.WeightFormat(granularity="row")},
    "groups": {"routed": mote.WeightFormat(granularity="group", group=16)},
    "two of three, renormalised": {"num_experts": 3, "top_k": 2, "normalize_gates": True},
    "convex": {"combine": "convex"},
    "no shared expert": {"shared_expert": False},
    "ternary shared expert": {"shared": mote.WeightFormat(granularity="row")},
    "every second layer": {"placement": "sparse"},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_logits_are_those_of_transformers(setting: str, checkpoints: Any) -> None:
    packed = checkpoints("qwen2", initialise="random", **SETTINGS[setting])[2]
    assert close(all_logits(decoding(packed), IDS), plain_logits(packed, IDS), 1e-4)


def test_every_family_dense_and_packed(family: str, checkpoints: Any) -> None:
    dense, _, packed = checkpoints(family)
    for root in (dense, packed):
        assert close(all_logits(decoding(root), IDS), plain_logits(root, IDS), 1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_dense_bf16_against_fp32_arithmetic(tiny: Any, tmp_path: Any, tied: bool) -> None:
    tiny("llama", tie_word_embeddings=tied, attention_bias=True).bfloat16().save_pretrained(tmp_path / "m")
    with torch.no_grad():
        model = open_model(tmp_path / "m").float()
        expected = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    assert close(all_logits(decoding(tmp_path / "m"), IDS), expected, 1e-5)
    assert close(all_logits(decoding(tmp_path / "m", kv="bf16"), IDS), expected, 1e-2)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_scaled_rotary_positions(tiny: Any, tmp_path: Any, kind: str) -> None:
    scaling = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 100.0}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    tiny("llama", rope_parameters=scaling).save_pretrained(tmp_path / "m")
    assert close(all_logits(decoding(tmp_path / "m"), IDS), plain_logits(tmp_path / "m", IDS), 1e-5)


@pytest.mark.parametrize("family", ["Qwen3", "Mistral"])
def test_other_families_are_rows_of_the_table(family: str, tmp_path: Any) -> None:
    """Qwen3 norms queries and keys head by head; Mistral, without its sliding window, is Llama by another name."""
    import transformers as tf

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 99}
    sizes |= {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None}
    model = getattr(tf, f"{family}ForCausalLM")(getattr(tf, f"{family}Config")(**sizes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    model.save_pretrained(tmp_path / "m")
    assert close(all_logits(decoding(tmp_path / "m"), IDS), plain_logits(tmp_path / "m", IDS), 1e-5)


def test_a_known_prefix_is_not_decoded_again(checkpoints: Any) -> None:
    packed = checkpoints("llama")[2]
    engine, expected = decoding(packed), all_logits(decoding(packed), IDS)
    engine.prefill(engine.sequence(), IDS[:70])
    before = engine.decoded
    other = engine.sequence()
    engine.prefill(other, [*IDS[:50], 4, 4])
    assert engine.decoded - before == 2
    again = engine.sequence()
    assert np.array_equal(engine.prefill(again, IDS), expected[-1])
    assert engine.decoded - before == 2 + 20
    assert engine.reused == 50 + 70


def test_a_head_in_the_files_counts_whatever_config_says(tiny: Any, tmp_path: Any) -> None:
    tiny("qwen2").save_pretrained(tmp_path / "m")
    vectors = load_file(tmp_path / "m" / "model.safetensors")
    tied = all_logits(decoding(tmp_path / "m"), IDS)
    assert close(tied, plain_logits(tmp_path / "m", IDS), 1e-5)
    vectors["lm_head.weight"] = vectors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(vectors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    untied = all_logits(decoding(tmp_path / "m"), IDS)
    assert close(untied, plain_logits(tmp_path / "m", IDS), 1e-5)
    assert not np.allclose(untied, tied)


def test_routes_are_those_of_the_routers(checkpoints: Any) -> None:
    from mote.model.block import blocks

    packed = checkpoints("llama", initialise="random", placement="sparse")[2]
    engine, model = decoding(packed, chunk=32), open_model(packed)
    with engine.trace() as routes:
        all_logits(engine, IDS)
    expert = np.concatenate([r.expert for r in routes], axis=1)
    gate = np.concatenate([r.gate for r in routes], axis=1)
    assert [r.start for r in routes] == [0, 32, 64]
    expected: list[Any] = []
    blocks(model)[0].router.register_forward_hook(lambda module, args, route: expected.append(route))
    with torch.no_grad():
        model(input_ids=torch.tensor([IDS]))
    assert (expert[0, :, 0] == expected[0].expert_Tk[:, 0].numpy()).all()
    assert np.allclose(gate[0, :, 0], expected[0].gate_Tk[:, 0].numpy(), rtol=1e-4)
    assert (expert[1] == -1).all()


def test_traces_are_nested(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llama", initialise="random")[2])
    sequence = engine.sequence()

    def step() -> None:
        sequence.append(5)
        engine.step([sequence])

    with engine.trace() as outer:
        with engine.trace() as first:
            step()
        with engine.trace() as second:
            pass
        step()
        with engine.trace() as third:
            step()
    assert [[route.start for route in routes] for routes in (outer, first, second, third)] == [[0, 1, 2], [0], [], [2]]
    assert outer[0] != outer[1]  # told apart by identity, not by arrays


def test_comparison_with_transformers_sees_other_routes(checkpoints: Any, tmp_path: Any) -> None:
    packed = checkpoints("llama", initialise="random")[2]
    found = compare(packed, decoding(packed), [Text(ids=IDS), Text(ids=IDS[:7])])
    assert found.tokens == found.unflipped == len(IDS) + 7
    assert found.first_agreement == found.agreement == 1
    assert found.flip_rate == 0
    assert 0 < found.median_error <= found.largest_error < 1e-5
    vectors, changed = load_file(packed / "model.safetensors"), tmp_path / "changed"
    for name in vectors:
        if name.endswith("router.weight"):
            vectors[name] = vectors[name].flip(0)
    shutil.copytree(packed, changed)
    save_file(vectors, changed / "model.safetensors", {"format": "pt"})
    assert compare(packed, decoding(changed), [Text(ids=IDS)]).flip_rate > 0.5


def test_a_wrong_number_of_threads_is_said(checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = checkpoints("llama")[0]
    monkeypatch.setenv("MOTE_NUM_THREADS", "3")
    assert decoding(dense, threads=0).threads == 3
    monkeypatch.setenv("MOTE_NUM_THREADS", "two")
    with pytest.raises(EngineError, match="MOTE_NUM_THREADS='two'"):
        decoding(dense, threads=0)
