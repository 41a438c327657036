"""Which ggml type a matrix gets, and what is said when it is not the one that was asked for.

Decided from a matrix's description, before any of it is read, since the header of a GGUF file comes first.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from mote.errors import FormatError
from mote.export.config import AUTO, GgufConfig
from mote.export.ggml import FLOATS, TERNARY, TYPES, Bytes, GgmlType, bfloat16
from mote.export.matrices import Integers, Matrix, Stored

_OF_LAYER = re.compile(r"blk\.\d+\.")


@dataclass(frozen=True)
class Choice:
    """A type, and a note for people or ""."""

    type: GgmlType
    note: str = ""


def choose(asked: str, stored: Stored, where: str) -> Choice:
    """The type of one matrix: the one that was asked for, or the next that its rows and groups go into, with a note.

    where: its name, for errors. Raises FormatError for ternary types of what is not ternary, or fits no small type.
    """
    name = _automatic(stored) if asked == AUTO else asked
    kind, group = TYPES[name], stored.group
    if name in TERNARY:
        if not 0 < stored.levels <= 1:
            what = "floats" if stored.is_float else stored.format.quantizer
            raise FormatError(f"{where}: {name} holds -1, 0, 1, and these are {what}; choose Q8_0, Q4_0, BF16 or F32")
        if stored.cols % kind.block == 0 and (group == stored.cols or group % kind.block == 0):
            return Choice(kind)
        reason = (
            f"rows of {stored.cols} are no multiple of {kind.block}"
            if stored.cols % kind.block
            else f"a scale per {group} inputs cuts {name}'s blocks of {kind.block}"
        )
        kind = TYPES["Q4_0"]
        if stored.cols % kind.block or (group < stored.cols and group % kind.block):
            raise FormatError(
                f"{where}: {reason}, and Q4_0 with its blocks of {kind.block} does not fit either; choose BF16 or F32"
            )
        return Choice(kind, f"{reason}: Q4_0 instead of {name}, the same numbers")
    if name in FLOATS:
        exact = name == "F32" or stored.is_float
        return Choice(kind, "" if exact else f"{stored.format.quantizer} multiplied out, products rounded to BF16")
    if stored.cols % kind.block:
        return Choice(TYPES["BF16"], f"rows of {stored.cols} are no multiple of {kind.block}: BF16 instead of {name}")
    if not stored.is_float and not _holds(kind, stored):
        return Choice(kind, f"{stored.format.quantizer} per {group} multiplied out and rounded anew to {name}")
    return Choice(kind)


@dataclass
class Choices:
    """The types of a model's matrices, chosen one after the other. types: names by part of the config."""

    config: GgufConfig
    types: dict[str, set[str]] = field(default_factory=dict)
    _said: dict[str, dict[str, None]] = field(default_factory=dict)

    def choose(self, part: str, stored: Stored, name: str) -> GgmlType:
        """The type of the matrix that llama.cpp calls `name`. Raises as `choose` does."""
        choice = choose(getattr(self.config, part), stored, name)
        if choice.note:
            self._said.setdefault(choice.note, {})[_OF_LAYER.sub("", name)] = None
        self.types.setdefault(part, set()).add(choice.type.name)
        return choice.type

    @property
    def notes(self) -> list[str]:
        """One line for every reason for which matrices did not get the type that was asked for."""
        return [f"{', '.join(kinds)}: {note}" for note, kinds in self._said.items()]


def write(matrix: Matrix, kind: GgmlType) -> Bytes:
    """The bytes of one matrix, uint8 [N, row_bytes]. Raises FormatError for a scale that fp16 cannot hold."""
    if isinstance(matrix, Integers) and kind.join is not None:
        cut = matrix.group < matrix.q.shape[1] and matrix.group % kind.block
        if not cut and kind.low <= matrix.q.min() and matrix.q.max() <= kind.high:
            return kind.write(matrix.q, matrix.scale, matrix.group)
    values = matrix.floats() if isinstance(matrix, Integers) else np.ascontiguousarray(matrix)
    if kind.name == "F32":
        return values.view(np.uint8)
    if kind.name == "BF16":
        return bfloat16(values)
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    found: Bytes = quantize(values, GGMLQuantizationType[kind.name])
    return found


def _automatic(stored: Stored) -> str:
    """The type that holds the stored numbers exactly, if its blocks fit the rows."""
    if not stored.levels:  # no type of ggml has zero points of 16 bits for such groups
        return "BF16" if stored.dtype in ("BF16", "U8") else "F32"
    if stored.levels == 1:
        return "TQ2_0"
    return "Q4_0" if _holds(TYPES["Q4_0"], stored) else "Q8_0"


def _holds(kind: GgmlType, stored: Stored) -> bool:
    """Whether integers and scales go into the type as they are."""
    fits = stored.group == stored.cols or stored.group % kind.block == 0
    return fits and 0 < stored.levels <= -kind.low and stored.format.max_level <= kind.high
