"""The start file: what training changed in one dense model, small enough to ship. One safetensors file that holds

    <tensor>                  the trained tensor whole (norms, biases, the connector)
    <tensor>.in  [r, K]       factors of the change of a matrix W [N, K]:  W_trained ~ W_base + out^T in
    <tensor>.out [r, N]
    <any of these>.scale      beside integers: I8 with one scale a row, or U8 with two 4-bit codes a byte (the even
                              column low, code = level + 8) and one scale a group of 64; its value is scale * level

and, as JSON under `mote_start` of its metadata, a record: hashes of the base model that it belongs to, so that it is
never applied to another one, a digest of its tensors, and what it was made from.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mote.assemble.config import Precision
from mote.checkpoint.accounting import component_of
from mote.checkpoint.atomic import write_file
from mote.checkpoint.header import parse_json, read_header
from mote.checkpoint.lineage import canonical_json
from mote.checkpoint.shards import Checkpoint, count_not_finite
from mote.errors import CheckpointError
from mote.ternary.format import WeightFormat
from mote.ternary.quantize import dequantize_weight, quantize_weight

SCHEMA = 1
RECORD_KEY = "mote_start"
IN, OUT, SCALE = ".in", ".out", ".scale"
GROUP = 64
_INT8 = WeightFormat(quantizer="int8", scale="absmax", granularity="row")
_INT4 = WeightFormat(quantizer="int4", scale="absmax", granularity="group", group=GROUP)


@dataclass(frozen=True, kw_only=True)
class StartFile:
    """record: the JSON of the metadata. tensors: as stored, by their names in the file."""

    record: dict[str, Any]
    tensors: dict[str, Tensor]

    def value(self, name: str) -> Tensor | None:
        """A tensor of the file decoded: fp32 where integers are stored, else as it is; None if it is not there."""
        stored = self.tensors.get(name)
        return None if stored is None else decode(stored, self.tensors.get(name + SCALE))

    def changed(self) -> set[str]:
        """Names of the model's tensors that the file changes."""
        names = {name for name in self.tensors if not name.endswith(SCALE)}
        return {name.removesuffix(IN).removesuffix(OUT) for name in names}


def encode(matrix: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    """A matrix [N, K] as it is stored, with its scales. "int4" needs an even K."""
    if precision in ("bfloat16", "float32"):
        return matrix.to(getattr(torch, precision)).contiguous(), None
    if precision == "int8":
        return quantize_weight(matrix, _INT8)
    level_NK, scale_NG = quantize_weight(matrix, _INT4)
    code_NK = (level_NK + 8).to(torch.uint8)
    # A scale rounded to bf16 moves a value by at most 0.4% of itself, far less than 4 bits do.
    return code_NK[:, 0::2] | code_NK[:, 1::2] << 4, scale_NG.to(torch.bfloat16)


def decode(stored: Tensor, scale: Tensor | None) -> Tensor:
    """Inverse of `encode`: fp32 from integers, floats as they are."""
    if scale is None:
        return stored
    if stored.dtype == torch.int8:
        return dequantize_weight(stored, scale.float(), _INT8)
    code_NK = torch.stack([stored & 15, stored >> 4], dim=-1).flatten(-2)
    return dequantize_weight(code_NK.to(torch.int8) - 8, scale.float(), _INT4)


def encoded_bytes(rows: int, cols: int, precision: Precision) -> int:
    """Bytes of a matrix [rows, cols] in a file, scales included."""
    scales = {"int8": 4 * rows, "int4": 2 * rows * -(-cols // GROUP)}.get(precision, 0)
    bits = {"int8": 8, "int4": 4, "bfloat16": 16, "float32": 32}[precision]
    return rows * cols * bits // 8 + scales


def part_of(name: str) -> str:
    """Which of "connector", "vision_tower" and "language_model" (all else) a tensor belongs to."""
    component = component_of(name)
    return component if component in ("connector", "vision_tower") else "language_model"


def base_hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 over names, dtypes, shapes and bytes of the language model and of the vision tower (reads all).

    The connector is no part of the base: a start file replaces it.
    """
    parts = {"language_model": hashlib.sha256(), "vision_tower": hashlib.sha256()}
    for name in sorted(checkpoint.tensors):
        part = part_of(name)
        if part in parts:
            parts[part].update(bytes.fromhex(_tensor_hash(name, checkpoint.read(name))))
    return {part: digest.hexdigest() for part, digest in parts.items()}


def write_start(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a start file in one step, with the schema and the digest of its tensors added to the record."""
    whole = {"schema": SCHEMA, **record, "tensors": _digest(tensors)}
    metadata = {RECORD_KEY: canonical_json(whole).decode()}  # one key: safetensors does not keep their order
    write_file(path, save(dict(tensors), metadata=metadata))


def read_start(path: Path) -> StartFile:
    """Read and check a start file.

    Raises CheckpointError if it is damaged or altered, holds NaN or Inf, or is no start file.
    """
    read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(RECORD_KEY)
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; fetch or extract it again") from None
    if text is None:
        raise CheckpointError(f"{path}: is no start file (no {RECORD_KEY} in its metadata); `mote extract` writes one")
    record = parse_json(text.encode(), f"{path}: {RECORD_KEY}")
    if record.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: schema {record.get('schema')!r} is not {SCHEMA}; use a newer mote")
    if record.get("tensors") != _digest(tensors):
        raise CheckpointError(f"{path}: its tensors are not those that were written; fetch or extract it again")
    bad = next((name for name, tensor in tensors.items() if count_not_finite(tensor)), None)
    if bad is not None or not isinstance(record.get("base"), dict):
        raise CheckpointError(f"{path}: {f'{bad!r} holds NaN or Inf' if bad else 'names no base'}; extract it again")
    return StartFile(record=record, tensors=tensors)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256("".join(_hashes(tensors)).encode()).hexdigest()


def _hashes(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(tensors):
        yield _tensor_hash(name, tensors[name])


def _tensor_hash(name: str, tensor: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
