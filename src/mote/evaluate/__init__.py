"""Evaluation: one stated metric per skill, intervals, a blind baseline; any model behind a Protocol.

`run` scores checkpoints, `hf` makes a transformers model a `Scorer`, `scoring` scores any `Scorer`.
"""

from mote.evaluate.config import EvaluateConfig
from mote.evaluate.results import Answered, EvaluationResult, Score
from mote.evaluate.scorer import Scorer

__all__ = ["Answered", "EvaluateConfig", "EvaluationResult", "Score", "Scorer"]
