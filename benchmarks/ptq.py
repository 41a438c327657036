"""Perplexity of real language models after training-free quantisation, method by method and width by width.

    python -m benchmarks.ptq --model base=runs/small/assembled control=runs/small/dense [--seconds 200]
    python -m benchmarks.ptq --model dithered=runs/small/assembled --dither --bits 4
    python -m benchmarks.ptq --model qwen0.5b=runs/bench/qwen2.5-coder-0.5b-q4_k_m.gguf --methods rtn hqq gptq

Every matrix of every decoder layer (attention and feed-forward) in groups of 64, embeddings and head as they are.
Perplexity of 32 windows of 512 tokens, weights dequantised and activations as they come, so that it is the methods that
are compared; 95% intervals by resampling windows. Forward passes are in fp32, or with `--precision bf16` in half the
time where the processor has its instructions; elsewhere their products are emulated in fp32, in a little more than
fp32's time, and a row says so (`measured`). `excess` is the mean log-likelihood lost against the model before, window
by window. `divergence` is how far its predictions are from the model's before, KL(before || after) in nats a token,
over the first 8 windows: rounding can undo some training, and then make a fine-tuned model better at text, but never
more like itself. Calibration: 64 other windows of the same text, or `--mix`, conversations with pictures.
`--dither`: the models as they might have been before somebody rounded them to the 4 bits that they came in.

The text is the language reference inside of Python itself (pydoc_data.topics), whose hash goes into the report. A GGUF
file holds 4-bit weights already: rows on it measure the distance to that grid as well.

Rows that the report has whole are not measured again (an early one without a divergence is), after --seconds no new
one is begun, and a calibrated row that was stopped goes on at its last layer: run it until it says "done".
"""

import argparse
import datetime
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.perplexity import CALIBRATED, COMPARED, TESTED, WINDOW, Subject, is_emulated, products, scores, text
from benchmarks.report import RESULTS, header, processor, save
from mote.compress.methods import awq, gptq, hqq
from mote.compress.methods.libraries import version
from mote.compress.quantize_config import Method, QuantizeConfig
from mote.compress.walk import Calibrated, walk
from mote.evaluate.intervals import bootstrap
from mote.model.families import anatomy
from mote.model.precision import Precision
from mote.ternary.integers import dequantize_integers
from mote.ternary.round_to_nearest import nearest

GROUP = 64
WIDTHS = (8, 4, 3, 2)


@dataclass(frozen=True)
class Setting:
    """One row to measure: of which model, by which method; bits 0 is the model as it is."""

    model: str
    method: Method | Literal["none"]
    bits: int
    symmetric: bool = True
    calibration: str = ""
    precision: Precision = "fp32"


def settings(
    name: str,
    methods: Sequence[Method],
    widths: Sequence[int],
    grids: Sequence[str],
    *,
    mix: bool,
    precision: Precision,
) -> Iterator[Setting]:
    """Rows of one model."""
    yield Setting(name, "none", 0, precision=precision)
    for method in methods:
        for bits in widths:
            for symmetric in (grid == "symmetric" for grid in grids):
                if method == "hqq" and symmetric:
                    continue
                data = "text" if method in ("gptq", "awq") else ""
                yield Setting(name, method, bits, symmetric, data, precision)
                if mix and data and bits in (4, 3):
                    yield Setting(name, method, bits, symmetric, "mix", precision)


class Layers:
    """`mote.compress.walk.Snapshots` in a folder: a file for each layer, and one of what the last gave.

    path: of the model. on: what runs the row; a row that another commit began names both. Layers of another file,
    processor or kind of products are thrown away. earlier: seconds that they took before this process.
    """

    def __init__(self, folder: Path, path: str, on: Mapping[str, Any]) -> None:
        self.folder, self._start, self.earlier = folder, time.perf_counter(), 0.0
        kept, self.on = folder / "begun.json", dict(on)
        begun = json.loads(kept.read_text()) if kept.exists() else {"git": ""}
        if begun == {"path": path, **on, "git": begun["git"]}:
            self.on["git"] = ", then ".join(dict.fromkeys([*begun["git"].split(", then "), on["git"]]))
        else:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"path": path, **self.on}))

    def load(self, layers: Sequence[torch.nn.Module], hidden: list[Tensor]) -> int:
        """Puts back what the files hold; the number of layers."""
        last = self.folder / "hidden.safetensors"
        if not last.exists():
            return 0
        found = load_file(last)
        done, self.earlier = int(found.pop("done")), float(found.pop("seconds"))
        for index, layer in enumerate(layers[:done]):
            layer.load_state_dict(load_file(self._file(index)))
        hidden[:] = [found[str(batch)] for batch in range(len(hidden))]
        print(f"ptq: goes on at layer {done}", file=sys.stderr)
        return done

    def save(self, index: int, layer: torch.nn.Module, hidden: Sequence[Tensor]) -> None:
        """Keeps one more."""
        save_file(layer.state_dict(), self._file(index))
        kept = {str(batch): h_BTH.contiguous() for batch, h_BTH in enumerate(hidden)}
        partial = self.folder / "partial"
        seconds = self.earlier + time.perf_counter() - self._start
        save_file({**kept, "done": torch.tensor(index + 1), "seconds": torch.tensor(seconds)}, partial)
        partial.replace(self.folder / "hidden.safetensors")

    def _file(self, index: int) -> Path:
        return self.folder / f"{index}.safetensors"


def quantize(model: Any, setting: Setting, subject: Subject, stopped: Layers) -> None:
    """Puts the dequantised weights in the place of the model's."""
    storage: Any = f"int{setting.bits}"
    method: Any = setting.method
    config = QuantizeConfig(
        shared=storage,
        attention=storage,
        group=GROUP,
        method=method,
        symmetric=setting.symmetric,
    )
    contract = config.contract(None, setting.model)
    if config.calibrated:
        batches = subject.batches(setting.calibration, model)
        tokens = sum(batch.ids.numel() for batch in batches)
        calibrated: Calibrated = gptq.Gptq() if setting.method == "gptq" else awq.Awq(tokens)
        walk(model, contract, batches, calibrated, keep=True, precision=setting.precision, snapshots=stopped)
        return
    rounded = hqq.quantize if setting.method == "hqq" else nearest
    with torch.no_grad():
        layers: Any = anatomy(model).decoder.layers
        for module in layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(dequantize_integers(rounded(module.weight, contract.shared), contract.shared))


def measure(setting: Setting, subject: Subject, before: Sequence[float], stopped: Layers) -> dict[str, Any]:
    """One row; before: losses of the model as it is, computed in the same way, empty for that row itself."""
    start = time.perf_counter()
    model = subject.load()
    if setting.bits:
        quantize(model, setting, subject, stopped)
    spent = stopped.earlier + time.perf_counter() - start
    found, apart = scores(model, subject, COMPARED if setting.bits else 0)
    mean, (low, high) = sum(found) / len(found), bootstrap(found)
    row = {**asdict(setting), "group": GROUP if setting.bits else 0, "seconds": round(spent, 1)}
    if setting.method in ("hqq", "gptq", "awq"):
        row["library"] = version(setting.method)
    row["perplexity"] = {name: round(math.exp(x), 3) for name, x in (("value", mean), ("low", low), ("high", high))}
    if before:
        lost = [a - b for a, b in zip(found, before, strict=True)]
        low, high = bootstrap(lost)
        row["excess"] = {"value": round(sum(lost) / len(lost), 5), "low": round(low, 5), "high": round(high, 5)}
    if apart:
        low, high = bootstrap(apart)
        row["divergence"] = {"value": round(sum(apart) / len(apart), 5), "low": round(low, 5), "high": round(high, 5)}
    row["measured"] = {"date": datetime.date.today().isoformat(), **stopped.on}
    row["losses"] = [round(x, 5) for x in found]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="NAME=PATH", help="checkpoint or .gguf file")
    parser.add_argument("--methods", nargs="+", default=["rtn", "hqq", "gptq", "awq"])
    parser.add_argument("--bits", nargs="+", type=int, default=list(WIDTHS))
    parser.add_argument("--grids", nargs="+", default=["symmetric", "asymmetric"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the forward passes")
    parser.add_argument("--dither", action="store_true", help="models moved off the 4-bit grid that they came on")
    parser.add_argument("--mix", type=Path, help="conversations with pictures, for rows calibrated on them as well")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after so many")
    parser.add_argument("--work", type=Path, default=Path("runs/ptq"), help="layers of a row that is not done yet")
    parser.add_argument("--out", type=Path, default=RESULTS / "ptq.json")
    a = parser.parse_args()
    about: dict[str, Any] = {"text": "pydoc_data.topics", "sha256": hashlib.sha256(text().encode()).hexdigest()}
    about |= {"windows": TESTED, "window": WINDOW, "calibrated": CALIBRATED}
    report: dict[str, Any] = json.loads(a.out.read_text()) if a.out.exists() else {"rows": [], "settings": about}
    if report["settings"] != about:
        raise SystemExit(f"ptq: {a.out} holds rows of another text or other windows; name another file by --out")
    rows: list[dict[str, Any]] = report["rows"]
    start, here = time.perf_counter(), header({})  # not after hours, when the source is another
    on = {"git": here["git"], "cpu": processor(here["machine"]["cpu"]), "emulated": is_emulated(a.precision)}
    for name, path in (item.split("=", 1) for item in a.model):
        subject = Subject(Path(path), a.mix, a.precision, dithered=a.dither)
        mix = a.mix is not None and "vision" in _config(Path(path))
        for setting in settings(name, a.methods, a.bits, a.grids, mix=mix, precision=a.precision):
            if any(asdict(setting).items() <= row.items() and ("divergence" in row or not row["bits"]) for row in rows):
                continue
            if time.perf_counter() - start > a.seconds:
                print("ptq: time is up; run it again to go on", file=sys.stderr)
                return
            asked = asdict(Setting(name, "none", 0, precision=a.precision)).items()
            own = next((row for row in rows if asked <= row.items()), None)
            rows = [row for row in rows if not asdict(setting).items() <= row.items()]
            with products(a.precision):
                before = [] if own is None else _before(own, on["emulated"], subject)
                stopped = Layers(a.work / "-".join(map(str, asdict(setting).values())), path, on)
                rows.append(measure(setting, subject, before, stopped))
            save(a.out, {}, rows, settings=about)
            shutil.rmtree(stopped.folder, ignore_errors=True)
            shown = {key: value for key, value in rows[-1].items() if key != "losses"}
            print(json.dumps(shown), flush=True)
    print("done")


def _before(own: dict[str, Any], emulated: bool, subject: Subject) -> Sequence[float]:
    """Losses of the model as it is by products of this kind: those of its row, or others that are kept beside them."""
    if own["measured"]["emulated"] == emulated:
        return cast(list[float], own["losses"])
    kind = "losses_emulated" if emulated else "losses_native"
    if kind not in own:
        own[kind] = [round(loss, 5) for loss in subject.losses]
    return cast(list[float], own[kind])


def _config(path: Path) -> str:
    return (path / "config.json").read_text() if path.is_dir() else ""


if __name__ == "__main__":
    main()
