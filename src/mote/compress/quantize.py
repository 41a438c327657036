"""`mote quantize`: a packed checkpoint whose integers a method of `methods` chose.

Without calibration matrices go through one at a time, as in packing. A calibrated method loads the model first and
walks through its layers (`walk`); then its results take the places of the matrices. Ternary experts are packed as
`mote pack` does, and everything that is not asked for stays as it is.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mote.checkpoint.atomic import check_space, check_target, check_writable
from mote.checkpoint.layout import VISION, decoder_prefixes, gain_of
from mote.checkpoint.lineage import Provenance, file_hash, pretty_json
from mote.checkpoint.resident import loaded, warn_of_memory
from mote.checkpoint.shards import Checkpoint
from mote.compress.calibration import Calibration, calibration_file, read_calibration
from mote.compress.methods import awq, gptq, hqq
from mote.compress.methods.libraries import version
from mote.compress.quantize_config import QuantizeConfig
from mote.compress.stream import Given, pack_checkpoint, packed_bytes, what_to_pack
from mote.compress.walk import HEAD, Calibrated, Place, Walked, walk, walk_memory
from mote.errors import RecipeError
from mote.model.opening import open_model, open_processor
from mote.model.packed import PackedMatrix
from mote.ternary.integers import PackedTensors, pack_integers

REPORT_FILE = "quantize.json"
"""Method, library, calibration data and what they did not reach, beside the weights."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is told how far the work is: pictures (so many more, all), layers likewise, then bytes (as
    `write_checkpoint`)."""

    pictures: Callable[[int, int], None] | None = None
    layers: Callable[[int, int], None] | None = None
    written: Callable[[int, int], None] | None = None


def quantize_checkpoint(
    checkpoint: Path,
    out: Path,
    config: QuantizeConfig,
    *,
    calibration: Path | None = None,
    force: bool = False,
    progress: Progress = Progress(),
) -> Checkpoint:
    """Reads the dense or up-cycled `checkpoint`, writes the packed `out` atomically and returns it opened.

    calibration: a LLaVA-style file, or a folder with `train.jsonl`, for a method that needs one. Warns of experts that
    no token of it went to. Raises RecipeError (no calibration data, a library that is missing), DataError (bad data),
    and what `pack_checkpoint` does; `out` is then as it was.
    """
    source = Checkpoint.open(checkpoint)
    targets, repeated = what_to_pack(source, config)
    check_target(out, force=force, source=checkpoint)
    if config.calibrated and calibration is None:
        raise RecipeError(
            f"quantize: method {config.method} needs data to calibrate on; give --calibration, a sample of the "
            "training mix, or use --method rtn or hqq"
        )
    if calibration is not None and not config.calibrated:
        raise RecipeError(
            f"quantize: method {config.method} reads no data; say --method gptq or awq, or leave --calibration out"
        )
    report: dict[str, Any] = {"method": config.method, "library": version(config.method)}
    read = None
    if calibration is not None:
        read = calibration_file(calibration)
        check_writable(out)
        check_space(out, packed_bytes(source, targets, repeated))
    provenance = Provenance.start(
        "quantize",
        config=config,
        seed=config.seed if read else None,
        parent=source,
        inputs={"calibration": file_hash(read)} if read else {},
    )
    given: Given
    if read is None:
        given = _One(source, config)
    else:
        walked, about = _calibrate(checkpoint, targets.contract, config, read, progress)
        report |= about
        given = _Walked(source, walked)
    return pack_checkpoint(
        checkpoint,
        out,
        config,
        force=force,
        given=given,
        provenance=provenance,
        files={REPORT_FILE: pretty_json(report)},
        progress=progress.written,
    )


def _calibrate(
    checkpoint: Path, contract: Any, config: QuantizeConfig, data: Path, progress: Progress
) -> tuple[Walked, dict[str, Any]]:
    """The walk through the model in `checkpoint`, and what to report of it."""
    source = Checkpoint.open(checkpoint)
    warn_of_memory(loaded(source.tensors.values(), source.mote), str(checkpoint), stacklevel=4)
    model = open_model(checkpoint)
    settings = {name: getattr(config, name) for name in ("samples", "max_length", "seed", "pictures")}
    processor = open_processor(checkpoint, model)
    read = read_calibration(data, model, processor, **settings, progress=progress.pictures)
    method: Calibrated = gptq.Gptq() if config.method == "gptq" else awq.Awq(tokens=read.tokens)
    needs = walk_memory(model, contract, read.batches, method)
    warn_of_memory(needs, f"{checkpoint}: calibrating", stacklevel=4, advice="lower --samples")
    walked = walk(model, contract, read.batches, method, precision=config.precision, progress=progress.layers)
    _warn_of_experts(walked)
    return walked, {"calibration": _about(read), "not_routed": walked.not_routed}


def _about(read: Calibration) -> dict[str, Any]:
    counts = {name: getattr(read, name) for name in ("samples", "pictures", "tokens")}
    return {"sha256": read.sha256, **counts}


def _warn_of_experts(walked: Walked) -> None:
    if walked.not_routed:
        which = "; ".join(f"layer {layer}: {', '.join(map(str, e))}" for layer, e in walked.not_routed.items())
        warnings.warn(
            f"no token of the calibration data went to some experts ({which}), so that those in integer formats are "
            "rounded to nearest; raise --samples, or calibrate on data like those of training",
            stacklevel=3,
        )


class _Walked:
    """Gives the packer what a walk made, by the names that tensors have on disk."""

    def __init__(self, source: Checkpoint, walked: Walked) -> None:
        self._prefixes = {prefix: layer for layer, prefix in decoder_prefixes(source.tensors).items()}
        self._packed = walked.packed

    def __call__(self, name: str, layout: PackedMatrix) -> PackedTensors | None:
        """The packed form of the tensor `name`, None for one that the walk left alone."""
        made = None if VISION.search(name) else self._packed.get(self._place(name))
        if made is None:
            return None
        if ".mlp.experts." not in name:
            return made[0]
        return _stack(made)

    def _place(self, name: str) -> Place:
        module = name.removesuffix(".weight")
        for prefix, layer in self._prefixes.items():
            if module.startswith(prefix):
                return layer, module.removeprefix(prefix)
        return HEAD


class _One:
    """Gives the packer one matrix after the other, by a method that needs no data."""

    def __init__(self, source: Checkpoint, config: QuantizeConfig) -> None:
        self._source, self._method = source, config.method

    def __call__(self, name: str, layout: PackedMatrix) -> PackedTensors | None:
        """The packed form of the tensor `name`, None for what is rounded to nearest."""
        if self._method != "hqq" or layout.format.scale != "given":
            return None
        weight = self._source.read(name, finite=True)
        if weight.ndim == 2:
            return pack_integers(hqq.quantize(weight, layout.format), layout.format)
        if gain := gain_of(name, self._source.tensors):
            weight = weight * self._source.read(gain, finite=True)[:, None, None]
        return _stack([pack_integers(hqq.quantize(matrix, layout.format), layout.format) for matrix in weight])


def _stack(matrices: Sequence[PackedTensors]) -> PackedTensors:
    packed, scale, zero = zip(*matrices, strict=True)
    return PackedTensors(torch.stack(packed), torch.stack(scale), None if zero[0] is None else torch.stack(zero))
