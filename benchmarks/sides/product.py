"""What a side of kernels.py is: matrices prepared once, and a function that multiplies tokens with each of them.

Shape suffixes: C matrices, N rows (outputs), K columns (inputs), T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Levels = NDArray[np.int8]


class Unavailable(Exception):
    """This side cannot run here; the message says why in one line."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """q_NK: integers of one matrix (-1, 0, 1, or -7..7 for 4-bit formats), whose weights are q times `scale`.

    count: how many copies of it, each in memory of its own, one call multiplies with (decode streams many matrices from
    RAM; 1 measures a GEMM). x_TK: activations. threads: of every side.
    """

    q_NK: Levels
    scale: float
    count: int
    x_TK: Floats
    threads: int

    @property
    def work(self) -> float:
        """Multiply-adds of one call (weights, for one token)."""
        return float(self.q_NK.size) * self.count * len(self.x_TK)


@dataclass(frozen=True, kw_only=True)
class Product:
    """run: multiplies x with all matrices and returns the last product [T, N]. nbytes: of one matrix, scales included.

    precision: weights x activations, as the table shows it. free: gives back memory that Python does not know of.
    """

    run: Callable[[], Floats]
    nbytes: int
    precision: str
    free: Callable[[], None] = lambda: None


def check(name: str, product: Product, problem: Problem, tolerance: float) -> None:
    """Stops the benchmark unless the product agrees with fp32 to a relative error of `tolerance`."""
    expected = problem.x_TK @ (problem.q_NK.astype(np.float32).T * np.float32(problem.scale))
    got = product.run()
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    if not error <= tolerance:
        raise SystemExit(f"kernels: {name} differs from fp32 by {error:.2g} of the norm, more than {tolerance}")
