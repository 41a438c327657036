"""The budget comparison: its steps run by every method, and its picture shows every row."""

import json
from types import SimpleNamespace

import pytest

import mote
from benchmarks import budget, budget_page
from mote.compress.quantize_config import QuantizeConfig


@pytest.mark.parametrize("method", ["rtn", "hqq", "gptq"])
def test_every_method_quantises(method, tiny, processor, tmp_path):
    run = tmp_path / "run"
    tiny("llama").save_pretrained(run / "dense")
    processor.tokenizer.save_pretrained(run / "dense")
    mote.upcycle(run / "dense", run / "mote", num_experts=2)
    turns = [{"from": "human", "value": "What is this"}, {"from": "gpt", "value": "word11 word12 word13"}]
    (run / "data").mkdir()
    (run / "data" / "train.jsonl").write_text(json.dumps({"id": "0", "conversations": turns}))
    config = QuantizeConfig(shared="int4", method=method, group=32, symmetric=method == "rtn")
    at = SimpleNamespace(out=tmp_path / "out", force=False, parents={})
    budget._quantize(config, run, "mote", ())(at)
    assert mote.Checkpoint.open(at.out).mote.shared.quantizer == "int4"
    assert json.loads((at.out / "quantize.json").read_text())["method"] == method


def test_the_picture_shows_every_row():
    report = json.loads(budget.REPORT.read_text())
    best = budget_page.best_methods(report["rows"])
    for broken in (False, True):
        low, high = budget_page._limits(best, broken=broken)
        shown = [row for row in best if (100 * row["average"]["value"] < budget_page.BROKEN) == broken]
        assert shown
        assert all(low < 100 * row["average"]["low"] and 100 * row["average"]["high"] < high for row in shown)
