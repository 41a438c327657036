"""Registers the transformers plug-in at `import mote`, without importing transformers.

Two modules of transformers matter: the registry of model types and the registry of quantisers. When one is loaded
already, registering happens at once; else a finder on `sys.meta_path` waits for it to be imported and registers right
after. So `import mote` costs nothing, and the order of the two imports does not matter.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register_model_type() -> None:
    from mote.model.guard import register

    register()


def _register_quantizer() -> None:
    importlib.import_module("mote.model.quantizer")  # registers itself by being imported


WATCHED: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_model_type,
    "transformers.quantizers.auto": _register_quantizer,
}


class _Waiting(MetaPathFinder):
    """Finds the watched modules as everyone else would, and wraps their loaders."""

    def __init__(self) -> None:
        self._searching: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in WATCHED or fullname in self._searching:
            return None
        self._searching.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, WATCHED[fullname])
        return spec


class _ThenRegister(Loader):
    """A loader that steps aside once the module has run, and then registers."""

    def __init__(self, loader: Loader, register: Callable[[], None]) -> None:
        self._loader = loader
        self._register = register

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._register()


def install() -> None:
    """Registers now what can be, and waits for the rest (again is harmless)."""
    if any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Waiting())
    for name, register in WATCHED.items():
        if name in sys.modules:
            register()
