"""The public surface, and that importing it is light."""

import os
import subprocess
import sys

import pytest

import mote

NAMES = [
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


def test_export_list():
    assert mote.__all__ == NAMES
    assert dir(mote) == sorted(NAMES)
    for name in NAMES:
        assert getattr(mote, name) is not None


def test_upcycle_stays_callable_after_its_package_is_imported():
    import mote.upcycle.config

    assert callable(mote.upcycle)
    assert mote.upcycle.config.UpcycleConfig is mote.UpcycleConfig


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'unpack'"):
        _ = mote.unpack


def test_import_loads_neither_torch_nor_transformers():
    script = "import sys, mote; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout.strip() == "[]"
