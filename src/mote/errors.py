"""Errors a user can act on: one line that says what is wrong, where, and what to do.

The command line prints the message of a `MoteError` and exits with 1; any other exception is a defect of ours. A
module raises the subclass of its own subject, so that a caller of the Python interface can tell them apart.
"""


class MoteError(Exception):
    """Base of every error that `mote` raises on purpose; its text is one line."""


class NativeError(MoteError):
    """The native library is missing, of another version, or refused an argument."""


class FormatError(MoteError):
    """A tensor, shape or byte string that a packing format cannot hold."""


class CheckpointError(MoteError):
    """A checkpoint directory that is missing, truncated, altered, or in a state that a verb does not accept."""


class DataError(MoteError):
    """Training or evaluation data that cannot be used; the text names file and line."""


class RecipeError(MoteError):
    """A recipe or setting that is unknown, of the wrong type or out of range."""


class UnsupportedModelError(MoteError):
    """A model whose parts were not found; the text lists what was looked for."""


class TrainingError(MoteError):
    """Training that cannot start or go on, such as a loss that is not finite."""


class EngineError(MoteError):
    """A request that the engine cannot serve: more tokens than the model has positions, a sequence that was freed."""


class CancelledError(MoteError):
    """A call that `Engine.cancel` ended; the engine and its sequences can be used on."""


class PlanError(MoteError):
    """A model, device or budget that cannot be planned with: unknown, malformed, or too small for anything."""
