"""Versions of the peers, read from their environment without importing them."""

import importlib.metadata
from pathlib import Path

PEERS = ("llama-cpp-python", "ik-llama-cpp-python", "litespark-inference", "gguf")


def versions_of(peers: Path) -> dict[str, str]:
    """{distribution: version} of those installed in the environment at `peers`."""
    folders = [str(folder) for folder in peers.glob("lib/python*/site-packages")]
    found = {
        d.metadata["Name"].replace("_", "-").lower(): d.version for d in importlib.metadata.distributions(path=folders)
    }
    return {name: found[name] for name in PEERS if name in found}
