"""The paper's warning about small models, given once."""

import warnings

from mote.ternary.format import WeightFormat

SMALL_MODEL = 1_000_000_000
"""Parameters of the language model below which the paper saw ternary experts fall behind."""

_given = False


def warn_if_small(parameters: int, routed: WeightFormat) -> None:
    """Warns once per process of ternary experts in a language model of fewer than `SMALL_MODEL` parameters."""
    global _given
    if parameters < SMALL_MODEL and routed.quantizer == "ternary" and not _given:
        _given = True
        warnings.warn(
            f"up-cycling a language model of {parameters / 1e6:.1f} M parameters: the paper found ternary "
            "experts to underfit below 1 B; compare with the dense model before relying on it",
            stacklevel=3,
        )
