"""Stage 0: put a vision tower, a fresh connector and a language model together into one dense checkpoint."""

from mote.assemble.config import AssembleConfig, Weights
from mote.assemble.dense import assemble

__all__ = ["AssembleConfig", "Weights", "assemble"]
