"""The three training stages as data, and the settings of one training run."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from mote.errors import RecipeError

StageName = Literal["align", "instruct", "experts"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage of the method trains; everything else is frozen.

    trains: components by the names of `mote.checkpoint.accounting.COMPONENTS`.
    accepts: state of the checkpoint that it starts from.
    learning_rate: MoE-LLaVA's value, used where a recipe says nothing (the paper's own was not found).
    """

    trains: frozenset[str]
    accepts: str
    learning_rate: float
    title: str


LANGUAGE_MODEL = frozenset({"attention", "dense_ffn", "norms", "embeddings"})

STAGES: dict[str, Stage] = {
    "align": Stage(trains=frozenset({"connector"}), accepts="dense", learning_rate=1e-3, title="Stage I, align"),
    "instruct": Stage(
        trains=frozenset({"connector"}) | LANGUAGE_MODEL,
        accepts="dense",
        learning_rate=2e-5,
        title="Stage II, instruct",
    ),
    # "scales" are the learnable gains of the gated combine rule; the quantiser's own scales follow the weights.
    "experts": Stage(
        trains=frozenset({"routers", "routed_experts", "scales"}),
        accepts="upcycled",
        learning_rate=2e-5,
        title="Stage III, experts",
    ),
}


NOT_NEGATIVE = (
    *("epochs", "max_steps", "learning_rate", "connector_learning_rate", "weight_decay", "max_gradient_norm"),
    *("warm_start_epochs", "warm_start_learning_rate", "turns", "save_minutes", "probe_conversations"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run. Defaults are MoE-LLaVA's (see `docs/reference/recipe.md`) unless said.

    epochs, max_steps: length; `max_steps` > 0 ends it earlier and sets the length of the schedule.
    batch_size, accumulate: conversations per forward pass, and forward passes per optimiser step.
    learning_rate: peak; 0 takes the stage's. connector_learning_rate: the connector's own peak; 0 for the same.
    warmup, schedule: share of the steps with a rising rate, and what follows.
    max_gradient_norm: gradients are clipped to this norm.
    train_embeddings: whether stage II trains token embeddings and head (ours: frozen on small data, where rows of
        words that never occur would only drift).
    warm_start_epochs: ours, where the connector trains: epochs of its contrastive warm start, which needs no forward
        pass of the language model (see `warm_start`). warm_start_learning_rate: its peak.
    cache_features: keep the vision tower's output for every picture on disk; False computes it again in every epoch,
        for data whose features do not fit there.
    blind: the pictures' features are zeroed: a question-only model, to compare with.
    turns: questions of one conversation used in one sample at most; 0 for all.
    max_length: tokens per conversation; longer ones are cut at a turn.
    precision: "auto" is bf16 autocast where the device has it; masters and optimiser state are fp32 always.
    group_by_length: batches of conversations of similar length.
    gradient_checkpointing: recompute activations in the backward pass.
    save_minutes: minutes between resumable snapshots; 0 for none but the one at Ctrl-C.
    log_every: optimiser steps between log rows.
    probe_conversations: held-out conversations whose loss is taken before and after (forgetting); 0 for none.
    device: "auto", "cpu", or an accelerator's name ("cuda", "mps"); of several, the first visible one is used.
    """

    epochs: float = 1.0
    max_steps: int = 0
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 0.0
    connector_learning_rate: float = 0.0
    warmup: float = 0.03
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_gradient_norm: float = 1.0
    train_embeddings: bool = True
    warm_start_epochs: int = 0
    warm_start_learning_rate: float = 2e-3
    cache_features: bool = True
    blind: bool = False
    turns: int = 0
    max_length: int = 2048
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    group_by_length: bool = True
    gradient_checkpointing: bool = False
    save_minutes: float = 10.0
    log_every: int = 5
    probe_conversations: int = 64
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "log_every", "max_length"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < float("inf"):
                raise RecipeError(f"{name}={getattr(self, name)}: must be a finite number, 0 or more")
        for name in ("warmup", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"{name}={getattr(self, name)}: must be at least 0 and less than 1")
        if not (self.epochs or self.max_steps):
            raise RecipeError("epochs=0 and max_steps=0: nothing would be trained; set one of them")

    def resolved(self, stage: Stage) -> "TrainConfig":
        """The same settings with the stage's own learning rate where none was given.

        Raises RecipeError for a warm start in a stage that does not train the connector.
        """
        if self.warm_start_epochs and "connector" not in stage.trains:
            raise RecipeError(
                f"warm_start_epochs={self.warm_start_epochs}: {stage.title} does not train the connector; set it to 0"
            )
        changes: dict[str, Any] = {}
        if not self.learning_rate:
            changes["learning_rate"] = stage.learning_rate
        if not self.connector_learning_rate:
            changes["connector_learning_rate"] = self.learning_rate or stage.learning_rate
        return replace(self, **changes)
