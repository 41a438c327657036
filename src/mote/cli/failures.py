"""What a failure looks like: one line on stderr, and an exit code that says whose it is."""

import errno
import sys
import traceback
import warnings
from typing import TextIO

import typer

from mote.errors import MoteError

USER_ERROR, DEFECT = 1, 2
INTERRUPTED = 130
"""As shells have it: 128 + SIGINT."""


def report(error: BaseException, *, debug: bool = False) -> int:
    """Prints `error` in one line (with its traceback before it if `debug`) and returns the exit code."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt) or (
        isinstance(error, typer.Abort) and not isinstance(error.__cause__, EOFError)
    ):
        say("interrupted: nothing is half-written; the same command goes on where it can (train: with --resume)")
        return INTERRUPTED
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, MoteError):
        say(f"error: {error}")
        return USER_ERROR
    usage = getattr(error, "format_message", None)  # click's usage errors, whose class typer does not export
    if usage is not None:
        say(f"error: {usage()}; see --help")
        return int(getattr(error, "exit_code", DEFECT))
    if isinstance(error, BrokenPipeError):  # `mote info ... | head`
        sys.stderr.close()
        return USER_ERROR
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error):
        say("error: out of memory; lower the batch size, or use a machine with more")
        return USER_ERROR
    if isinstance(error, OSError) and error.errno is not None:
        say(f"error: {_operating_system(error)}")
        return USER_ERROR
    say(f"error: {type(error).__name__}: {error}; a defect of mote; run with --debug for the traceback")
    return DEFECT


def _operating_system(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    advice = {
        errno.ENOSPC: "; free some space and run the same command again",
        errno.EDQUOT: "; free some of your quota and run the same command again",
        errno.EACCES: "; choose another place with --out, or change its permissions",
        errno.EROFS: "; choose another place with --out",
    }
    return f"{where}{error.strerror}{advice.get(error.errno or 0, '')}"


def say(text: str) -> None:
    """Prints `text` on stderr as one line, whatever line breaks it holds."""
    print(" ".join(str(text).split()), file=sys.stderr, flush=True)


def warnings_in_one_line() -> None:
    """From here on a warning is one line without a source position; those meant for developers are not
    shown.
    """

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
            say(f"warning: {message}")

    warnings.showwarning = show
