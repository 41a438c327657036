"""From a question to token ids and back: what every way of answering shares, with the renderer that training used."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mote.data.conversation import Conversation, Turn
from mote.data.render import Renderer, renderer


class Prompter:
    """Renders for one checkpoint.

    processor: its processor, or its tokenizer for a model without eyes. ends: what its generation config names as ends
    of a text.
    """

    def __init__(self, processor: Any, image_token_id: int | None, ends: int | Iterable[int] | None) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self._image_token_id = image_token_id
        self._ends = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
        self._end_of_turn: int | None = None

    def question(self, image: Path | None, text: str) -> Conversation:
        """One question as a conversation, whose prompt ends where the answer would begin."""
        return Conversation(id="ask", image=image, turns=(Turn(question=text, answer="-"),))

    def renderer(self, num_image_tokens: int) -> Renderer:
        """The renderer for pictures of so many tokens."""
        if self._image_token_id is None:
            return renderer(self.tokenizer, num_image_tokens=num_image_tokens)
        token = self.tokenizer.convert_ids_to_tokens(self._image_token_id)
        return renderer(self.processor, num_image_tokens=num_image_tokens, image_token=token)

    def prompt(self, conversation: Conversation, num_image_tokens: int) -> tuple[int, ...]:
        """Token ids up to the last answer."""
        return self.renderer(num_image_tokens).prompt(conversation).ids

    def answer(self, conversation: Conversation, num_image_tokens: int) -> tuple[int, ...]:
        """Token ids of the last answer and its end of turn; the template may go on after that (a line break)."""
        return self.both(conversation, num_image_tokens)[1]

    def both(self, conversation: Conversation, num_image_tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What `prompt` and `answer` give, from one rendering."""
        whole = self.renderer(num_image_tokens).render(conversation)
        end = len(whole) - whole.loss_mask[::-1].index(True)
        start = end - whole.loss_mask[:end][::-1].index(False)  # a question stands before every answer
        return whole.ids[:start], whole.ids[start:end]

    def ends(self, conversation: Conversation, num_image_tokens: int) -> set[int]:
        """Tokens that end an answer: the template's end of turn, which is the same for every conversation and rendered
        once, and the generation config's."""
        if self._end_of_turn is None:
            self._end_of_turn = self.answer(conversation, num_image_tokens)[-1]
        return {self._end_of_turn, *self._ends}

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, special ones left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
