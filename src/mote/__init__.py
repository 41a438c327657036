"""MoTE: mixtures of ternary experts for memory-efficient multimodal models (arXiv 2506.14435).

Importing this package registers the transformers plug-in (without importing transformers), so that Auto classes,
`pipeline`, `Trainer` and `save_pretrained` work on MoTE checkpoints. The public names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mote import registration
from mote.errors import MoteError

if TYPE_CHECKING:
    from mote.checkpoint.contract import MoteConfig
    from mote.checkpoint.shards import Checkpoint
    from mote.compress.config import PackConfig
    from mote.compress.front import pack, quantize
    from mote.model.build import from_config
    from mote.model.routing import RoutingContext
    from mote.run.assistant import load
    from mote.ternary.format import WeightFormat
    from mote.upcycle.config import UpcycleConfig
    from mote.upcycle.front import upcycle

__version__ = "0.1.0"

_HOMES = {
    "Checkpoint": "mote.checkpoint.shards",
    "MoteConfig": "mote.checkpoint.contract",
    "PackConfig": "mote.compress.config",
    "RoutingContext": "mote.model.routing",
    "UpcycleConfig": "mote.upcycle.config",
    "WeightFormat": "mote.ternary.format",
    "from_config": "mote.model.build",
    "load": "mote.run.assistant",
    "pack": "mote.compress.front",
    "quantize": "mote.compress.front",
    "upcycle": "mote.upcycle",  # the package itself, which can be called
}

__all__ = [
    "Checkpoint",
    "MoteConfig",
    "MoteError",
    "PackConfig",
    "RoutingContext",
    "UpcycleConfig",
    "WeightFormat",
    "__version__",
    "from_config",
    "load",
    "pack",
    "quantize",
    "upcycle",
]

registration.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mote' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = import_module(_HOMES[name])
    value = home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
