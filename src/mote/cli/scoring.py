"""What evaluation is handed, so that packed checkpoints are scored by the engine."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mote.run.scorer import EngineScorer


def open_scorer(
    checkpoint: Path, *, features: Path | None, blind: bool, batch_tokens: int, precise: bool
) -> "EngineScorer | None":
    """A `mote.evaluate.scorer.OpenScorer`; says on stderr why a checkpoint is left to transformers."""
    from mote.cli.failures import say
    from mote.run.engine import Engine, open_engine
    from mote.run.scorer import EngineScorer

    engine = open_engine(checkpoint, kv="f32" if precise else "bf16", features=features, blind=blind)
    if not isinstance(engine, Engine):
        say(f"{checkpoint}: scored in transformers, not in mote's engine: {engine}")
        return None
    return EngineScorer(engine, batch_tokens=batch_tokens)
