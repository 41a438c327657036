"""The three training stages: align the connector, instruct the language model, train routers and experts."""

from mote.train.config import STAGES, Stage, StageName, TrainConfig

__all__ = ["STAGES", "Stage", "StageName", "TrainConfig", "train"]


def __getattr__(name: str) -> object:
    """`train` loads torch and transformers, which reading a recipe does not need."""
    if name == "train":
        from mote.train.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
