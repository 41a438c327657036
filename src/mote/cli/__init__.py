"""The command line. Each verb parses, calls one function, prints; nothing heavy is imported before a verb runs."""

import gc
import os
import sys
from collections.abc import Sequence

from mote.errors import MoteError


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `mote` with `argv` (default: the process's own arguments) and exits with the verb's code.

    0: done. 1: an error that the user can act on. 2: a usage error, or a defect of ours. 130: Ctrl-C. Each
    error is one line on stderr; the traceback is shown with --debug.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Other libraries' bars and notices would break into ours; whoever wants them sets these variables.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = run(arguments)
    except KeyboardInterrupt:  # before or after the verb, where `run` does not see it
        print("interrupted", file=sys.stderr)
        code = 130
    # Python ends by looking for garbage among all that was imported, a second's work with torch and transformers.
    gc.freeze()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of `mote ARGUMENTS`; errors have been printed."""
    from mote.cli.failures import INTERRUPTED, report

    debug = "--debug" in arguments
    try:
        from mote.cli.app import app

        code = app(args=arguments or ["--help"], prog_name="mote", standalone_mode=False)
        # typer turns Ctrl-C into an exit code without a word
        return report(KeyboardInterrupt()) if code == INTERRUPTED else code if isinstance(code, int) else 0
    except (Exception, KeyboardInterrupt) as error:
        if debug and not isinstance(error, SystemExit | MoteError | KeyboardInterrupt):
            raise
        return report(error, debug=debug)
