"""What a model must be able to do to be scored: two functions, as lm-evaluation-harness has them."""

from collections.abc import Sequence
from typing import Protocol

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
