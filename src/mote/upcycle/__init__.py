"""Up-cycling: a dense model's feed-forward networks become mixtures.

The package can be called, `mote.upcycle(model)`: Python binds a package's name in its parent on import, so the function
of that name would vanish behind it.
"""

import sys
from types import ModuleType
from typing import Any

from mote.upcycle.config import PRESETS, UpcycleConfig, preset

__all__ = ["PRESETS", "UpcycleConfig", "preset"]


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `mote.upcycle.front.upcycle`."""
        from mote.upcycle.front import upcycle

        return upcycle(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
