"""The paper's warning about small models, given once."""

import warnings

SMALL_MODEL = 1_000_000_000
"""Parameters of the language model below which the paper saw ternary experts fall behind."""

_given = False


def warn_if_small(parameters: int) -> None:
    """Warns once per process when the language model has fewer than `SMALL_MODEL` parameters."""
    global _given
    if parameters < SMALL_MODEL and not _given:
        _given = True
        warnings.warn(
            f"up-cycling a language model of {parameters / 1e6:.1f} M parameters: the paper found ternary "
            "experts to "
            "underfit below 1 B; compare with the dense model before relying on it",
            stacklevel=3,
        )
