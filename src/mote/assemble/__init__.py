"""Stage 0: put a vision tower, a fresh connector and a language model together into one dense checkpoint."""

from mote.assemble.config import AssembleConfig, ExtractConfig, StartConfig, Weights
from mote.assemble.dense import assemble
from mote.assemble.extract import extract_start
from mote.assemble.start import apply_start

__all__ = ["AssembleConfig", "ExtractConfig", "StartConfig", "Weights", "apply_start", "assemble", "extract_start"]
