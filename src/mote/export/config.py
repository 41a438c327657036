"""What an export does, as settings."""

from dataclasses import dataclass, fields
from typing import Literal

from mote.errors import FormatError
from mote.export.ggml import TYPES

AUTO = "auto"
FLOAT_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class GgufConfig:
    """Settings of `export_gguf`: a ggml type per part, or "auto".

    experts: routed experts; TQ2_0 (2.06 bits a weight) or TQ1_0 (1.69) become Q4_0 matrix by matrix where rows or
        scale groups do not fit. shared, attention, head, vision: shared experts, projections q k v o, head with the
        table of tokens, vision tower with connector. "auto" takes what holds the stored numbers exactly: Q4_0 for int4,
        Q8_0 for int8, TQ2_0 for ternary ones, BF16 or F32 for floats. Not for experts; and no ternary type for vision.
        A matrix whose rows are no whole number of a type's blocks becomes BF16.
    """

    experts: str = "TQ2_0"
    shared: str = AUTO
    attention: str = AUTO
    head: str = AUTO
    vision: str = AUTO

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            allowed = [*TYPES, AUTO]
            if item.name == "experts":
                allowed.remove(AUTO)
            if item.name == "vision":
                allowed = [AUTO, "F32", "BF16", "Q8_0", "Q4_0"]
            if value not in allowed:
                raise FormatError(f"export gguf: {item.name}={value!r} is unknown; use one of {', '.join(allowed)}")


@dataclass(frozen=True, kw_only=True)
class HfConfig:
    """Settings of `export_qwen2_moe`. dtype: of all tensors; bfloat16 halves the file and rounds the experts' scales,
    and the routers, to 8 bits."""

    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in FLOAT_DTYPES:
            raise FormatError(f"export hf: dtype={self.dtype!r} is unknown; use {' or '.join(FLOAT_DTYPES)}")
