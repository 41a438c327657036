"""What a model must be able to do to be scored: two functions, as lm-evaluation-harness has them.

The engine lives in a sibling stage; what runs an evaluation hands in how it is opened (`OpenScorer`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mote.data.conversation import Conversation


class Scorer(Protocol):
    """Any model behind two functions. A request is a conversation whose last answer is the continuation in
    question.

    Requests come in any order and number; results are in the same order. Greedy decoding, no sampling.
    """

    def generate_until(self, requests: Sequence[Conversation], *, max_tokens: int) -> list[str]:
        """The model's own last answer to each request, up to its end of turn or `max_tokens` tokens, as
        text.
        """
        ...

    def loglikelihood(self, requests: Sequence[Conversation]) -> list[tuple[float, bool]]:
        """For each request (log-probability in nats of the last answer and its end of turn, whether greedy
        decoding would give exactly these tokens).
        """
        ...


class EngineScorer(Scorer, Protocol):
    """A scorer with an engine of its own behind it. progress: is called with the number of requests that are done."""

    progress: Callable[[int], None]

    def fill(self, pictures: Sequence[Path]) -> None:
        """Prepares the vision features of these pictures."""
        ...

    def routing(self) -> list[dict[str, Any]]:
        """Per layer with a mixture {"layer", "load_text", "load_image", "mean_gate"} so far."""
        ...


class OpenScorer(Protocol):
    """Opens the scorer of a packed checkpoint, or gives None for one that its engine does not run.

    features: folder of the cache of vision features. precise: whether keys and values are kept in fp32.
    """

    def __call__(
        self, checkpoint: Path, *, features: Path | None, blind: bool, batch_tokens: int, precise: bool
    ) -> EngineScorer | None: ...
