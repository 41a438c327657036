"""Settings of an evaluation."""

from dataclasses import dataclass
from typing import Literal

from mote.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a model is scored.

    limit: questions per skill, the first of the file; 0 for all.
    blind: the pictures' features are zeroed: what a model says that has to guess.
    generate_exact: generate the answers to exact-match questions instead of checking in one forward pass whether the
        expected answer is what greedy decoding gives. The two differ only if a model writes the same text in other
        tokens; checking then says wrong. Slower by about the length of an answer.
    batch_tokens: tokens in one forward pass, padding included.
    max_tokens: longest generated answer.
    samples: questions that are also answered in text, for a report: the first of each skill in turn.
    dtype: "auto" is bf16 where the device computes in it, else fp32.
    seed: of the bootstrap.
    """

    limit: int = 0
    blind: bool = False
    generate_exact: bool = False
    batch_tokens: int = 4096
    max_tokens: int = 24
    samples: int = 12
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.limit, self.samples) < 0 or min(self.batch_tokens, self.max_tokens) < 1:
            raise RecipeError("evaluate: limit and samples must be 0 or more, batch_tokens and max_tokens at least 1")
