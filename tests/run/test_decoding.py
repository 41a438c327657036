"""The engine computes what transformers computes, with the same bits however it is asked."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mote
from mote.checkpoint.shards import Checkpoint
from mote.errors import CancelledError, EngineError
from mote.kernels.abi import KV_TOKENS
from mote.model.opening import open_config, open_model
from mote.run.compare import compare
from mote.run.decoding import Decoding
from mote.run.picture import Picture
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


def test_norms_over_heads(tmp_path: Any) -> None:
    """Another family is a row of the table: Qwen3, whose queries and keys are normed head by head."""
    import transformers as tf

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 99, "head_dim": 16}
    model = tf.Qwen3ForCausalLM(tf.Qwen3Config(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_norm.weight, 1.0, 0.3)
        torch.nn.init.normal_(layer.self_attn.k_norm.weight, 1.0, 0.3)
    model.save_pretrained(tmp_path / "m")
    assert close(all_logits(decoding(tmp_path / "m"), IDS), plain_logits(tmp_path / "m", IDS), 1e-5)


def test_bits_do_not_depend_on_company_cut_threads_or_forks(checkpoints: Any) -> None:
    packed = checkpoints("llava", initialise="random")[2]
    expected = all_logits(decoding(packed), IDS)
    for threads in (2, 3):
        assert np.array_equal(all_logits(decoding(packed, threads=threads), IDS), expected)
    for chunk in (1, 7, KV_TOKENS, 89):
        assert np.array_equal(all_logits(decoding(packed, chunk=chunk), IDS), expected)
    engine = decoding(packed)
    sequences = [engine.sequence() for _ in range(3)]
    for sequence, start in zip(sequences, (0, 3, 40), strict=True):
        engine.add(sequence, [*IDS[start:], *IDS[:start]])
    lengths = [sequence.num_waiting for sequence in sequences]
    batched = engine.forward(sequences, lengths)
    assert np.array_equal(batched[0], expected)
    for cut in (KV_TOKENS, KV_TOKENS + 5):
        forked = sequences[0].fork(cut)
        for place, token in enumerate(IDS[cut : cut + 6]):
            forked.append(token)
            sequences[1].append(token)  # the company goes on from elsewhere
            assert np.array_equal(engine.step([sequences[1], forked])[1], expected[cut + place])
        engine.free(forked)


def test_both_sides_of_a_fork_go_on(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llama")[2])
    first = engine.sequence()
    engine.prefill(first, IDS[:40])
    second = engine.fork(first)
    first.append(5)
    second.append(6)
    engine.step([first, second])
    for sequence, token in ((first, 5), (second, 6)):
        sequence.append(7)
        assert np.array_equal(engine.step([sequence])[0], all_logits(engine, [*IDS[:40], token, 7])[-1])


def test_blocks_come_back(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llama")[2])
    sequences = [engine.sequence() for _ in range(3)]
    for sequence in sequences:
        engine.prefill(sequence, IDS)
    sequences.append(engine.fork(sequences[0]))
    for sequence in sequences:
        engine.free(sequence)
        engine.free(sequence)
    assert engine.pool.in_use == -(-len(IDS) // KV_TOKENS)  # what the prefix cache keeps
    engine.prefixes.clear()
    assert engine.pool.in_use == 0
    with pytest.raises(EngineError, match="freed"):
        sequences[0].append(1)


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


def test_a_picture_is_told_from_another_and_not_decoded_twice(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llava")[2], image_token_id=98)
    generator = np.random.default_rng(0)
    cat, dog = (Picture(d * 64, generator.normal(size=(40, 36)).astype(np.float32)) for d in "ab")
    prompt = [1, *[98] * 40, 5, 6]
    logits = [engine.prefill(engine.sequence(), prompt, [picture]) for picture in (cat, dog)]
    assert not np.allclose(*logits)
    before = engine.decoded
    engine.prefill(engine.sequence(), [*prompt[:-1], 9], [cat])
    assert engine.decoded - before == 1
    with pytest.raises(EngineError, match="runs of"):
        engine.prefill(engine.sequence(), [1, *[98] * 39, 5], [cat])
    with pytest.raises(EngineError, match="runs of"):
        engine.prefill(engine.sequence(), prompt, [cat, dog])


def test_cancelling_leaves_the_engine_usable(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llama")[2])
    expected = all_logits(engine, IDS)[-1]
    sequence = engine.sequence()
    engine.cancel()
    with pytest.raises(CancelledError):
        engine.prefill(sequence, IDS)
    assert sequence.num_waiting == len(IDS)
    assert np.array_equal(engine.step([sequence])[0], expected)


def test_what_cannot_be_served_is_refused(checkpoints: Any) -> None:
    engine = decoding(checkpoints("llama")[2], positions=50)
    with pytest.raises(EngineError, match="50 positions"):
        engine.prefill(engine.sequence(), IDS)
    with pytest.raises(EngineError, match="vocabulary"):
        engine.prefill(engine.sequence(), [3, 99])
    with pytest.raises(EngineError, match="append some"):
        engine.step([engine.sequence()])
    sequence = engine.sequence()
    sequence.append(3)
    with pytest.raises(EngineError, match="twice"):
        engine.step([sequence, sequence])


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


def test_comparison_with_transformers_sees_other_routes(checkpoints: Any, tmp_path: Any) -> None:
    packed = checkpoints("llama", initialise="random")[2]
    found = compare(packed, decoding(packed), [IDS, IDS[:7]])
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
    assert compare(packed, decoding(changed), [IDS]).flip_rate > 0.5


def test_a_wrong_number_of_threads_is_said(checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = checkpoints("llama")[0]
    monkeypatch.setenv("MOTE_NUM_THREADS", "3")
    assert decoding(dense, threads=0).threads == 3
    monkeypatch.setenv("MOTE_NUM_THREADS", "two")
    with pytest.raises(EngineError, match="MOTE_NUM_THREADS='two'"):
        decoding(dense, threads=0)
