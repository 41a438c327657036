"""The libraries behind the methods: imported when a method needs them, and named when they are missing."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import Any

from mote.errors import RecipeError

DISTRIBUTION = "neural-compressor"
"""What the algorithms come from. The obvious `hqq` and `torchao` are imported by transformers, wherever they are
installed, whenever it loads a model: seconds for each command, and warnings on the way."""
PACKAGE = "neural_compressor.torch.algorithms.weight_only"
OPTIONS = "neural_compressor.common.base_config"
METHODS = ("hqq", "gptq", "awq")
"""Those that are the library's."""
INSTALL = 'pip install "mote-lmm[quantize]"'


def library(method: str, module: str = "") -> Any:
    """The library's module of `method`, or another one beside it. Raises RecipeError, saying what to install, where it
    cannot be imported."""
    place = f"hqq.{module}" if method == "hqq" and module else module or method
    try:
        with _quiet(), _no_workspace():
            # It looks for transformers when it is imported, and relies on it whenever transformers is there later.
            import_module("transformers")
            found = import_module(f"{PACKAGE}.{place}")
    except ImportError as error:
        raise RecipeError(
            f"method {method} needs {DISTRIBUTION}, which cannot be imported ({error}); install it: {INSTALL}"
        ) from None
    # It logs every matrix at level INFO; here it has a bar.
    logging.getLogger("neural_compressor").setLevel(logging.ERROR)
    return found


def version(method: str) -> str:
    """ "neural-compressor 3.10" of the library behind `method`, "" for one without a library. Raises as `library`."""
    if method not in METHODS:
        return ""
    library(method)
    return f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"


@contextmanager
def _no_workspace() -> Iterator[None]:
    """Imports without the folder for intermediate files, of which nothing here writes any, that the library makes where
    the command was started."""
    options = import_module(OPTIONS).options
    workspace, options.workspace = options._workspace, "."
    try:
        yield
    finally:
        options.workspace = workspace


@contextmanager
def _quiet() -> Iterator[None]:
    """Imports without the log lines and warnings about kernels for other machines and names that will go."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
