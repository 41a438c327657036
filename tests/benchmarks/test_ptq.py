"""What the perplexities after quantising are computed by."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import ptq
from benchmarks.perplexity import COMPARED, TESTED, WINDOW, Float32Products, dither, scores
from benchmarks.ptq import Layers, Setting
from mote.compress.calibration import text_batches
from mote.compress.methods import gptq

ON = {"git": "a", "cpu": "one", "emulated": False}


class Factors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Dtypes of the factors of every product that arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.seen |= {tensor.dtype for tensor in args if tensor.ndim == 2}
        return func(*args, **kwargs or {})


def test_products_in_fp32_are_those_of_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in ((2, 5, 300), (40, 300), (40,)))
    with torch.no_grad(), Factors() as factors, Float32Products():  # type: ignore[no-untyped-call]
        for given in (None, bias):
            found = torch.nn.functional.linear(x, w, given)
            exact = torch.nn.functional.linear(x.double(), w.double(), None if given is None else given.double())
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2**-8)
        assert factors.seen == {torch.float32, torch.float64}
        wide = torch.randn(3, 300, generator=generator)
        assert (wide @ wide.T).dtype == torch.float32


def test_scores_are_losses_and_divergences_window_by_window() -> None:
    generator = torch.Generator().manual_seed(0)
    vocabulary = 7
    ids = torch.randint(vocabulary, (WINDOW * TESTED,), generator=generator)
    before, after = (torch.randn(TESTED, WINDOW, vocabulary, generator=generator) for _ in range(2))
    parts = iter(after.split(4))
    subject: Any = SimpleNamespace(
        ids=ids.tolist(),
        logits=lambda model, windows: next(parts),
        before=list(before.log_softmax(-1).half()),
    )
    losses, apart = scores(None, subject, COMPARED)
    own = ids.view(TESTED, WINDOW)[:, 1:]
    expected = torch.nn.functional.cross_entropy(after[:, :-1].transpose(1, 2), own, reduction="none").mean(1)
    assert losses == pytest.approx(expected.tolist(), rel=1e-5)
    p, q = before.log_softmax(-1)[:COMPARED], after.log_softmax(-1)[:COMPARED]
    assert apart == pytest.approx((p.exp() * (p - q)).sum(-1).mean(1).tolist(), rel=1e-2)


def test_dithering_leaves_the_grid_by_half_a_step_at_most(tiny: Any) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    model, again = tiny("llama", **sizes), tiny("llama", **sizes)
    linear, embedding = model.model.layers[0].mlp.up_proj, model.get_input_embeddings()
    groups = linear.weight.detach().view(-1, 32)
    low = groups.amin(-1, keepdim=True)
    step = (groups.amax(-1, keepdim=True) - low) / 15
    before = ((groups - low) / step).round() * step + low
    groups.copy_(before)
    others = embedding.weight.detach().clone()
    dither(model)
    moved = (groups - before).abs() / step
    assert 0.4 < moved.max() <= 0.5 + 1e-4
    assert moved.mean() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(embedding.weight, others)
    again.model.layers[0].mlp.up_proj.weight.data.view(-1, 32).copy_(before)
    dither(again)
    assert torch.equal(again.model.layers[0].mlp.up_proj.weight, linear.weight)


def test_a_row_that_was_stopped_goes_on_at_its_last_layer(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting("tiny", "gptq", 4, symmetric=False, calibration="text")
    ids = torch.randint(90, (WINDOW * (TESTED + 1),), generator=torch.Generator().manual_seed(0)).tolist()
    subject: Any = SimpleNamespace(batches=lambda *_: text_batches(ids, window=16, count=8))

    class Stopped(Layers):
        def save(self, index: int, layer: torch.nn.Module, hidden: Any) -> None:
            super().save(index, layer, hidden)
            raise KeyboardInterrupt

    walked = []
    quantize = gptq.Gptq.quantize
    monkeypatch.setattr(gptq.Gptq, "quantize", lambda *given: walked.append(1) or quantize(*given))
    whole, again = tiny("llama"), tiny("llama")
    ptq.quantize(whole, setting, subject, Layers(tmp_path / "whole", "tiny", ON))
    matrices = len(walked)
    with pytest.raises(KeyboardInterrupt):
        ptq.quantize(tiny("llama"), setting, subject, Stopped(tmp_path / "stopped", "tiny", ON))
    walked.clear()
    ptq.quantize(again, setting, subject, later := Layers(tmp_path / "stopped", "tiny", {**ON, "git": "b"}))
    assert len(walked) == matrices // 2
    assert later.earlier > 0
    assert later.on == {**ON, "git": "a, then b"}
    for (name, expected), found in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(expected, found), name


@pytest.mark.parametrize(("path", "other"), [("other", {}), ("tiny", {"cpu": "other"}), ("tiny", {"emulated": True})])
def test_layers_of_another_file_or_processor_are_thrown_away(tiny: Any, tmp_path: Path, path: str, other: Any) -> None:
    layers = tiny("llama").model.layers
    Layers(tmp_path, "tiny", ON).save(0, layers[0], [])
    assert Layers(tmp_path, "tiny", ON).load(layers, []) == 1
    anew = Layers(tmp_path, path, {**ON, **other})
    assert (anew.load(layers, []), anew.on) == (0, {**ON, **other})
