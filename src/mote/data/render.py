"""The one prompt renderer: a conversation becomes token ids, loss mask and image slots.

Training, evaluation, chat and export all come through here, so that they cannot disagree. The text is the
chat template's own: with t_i the template's output up to the prompt for answer i, and u_i its output up to
and including answer i, the pieces are

t_0 | answer_0 end-of-turn | (rest of u_0 and what follows, up to t_1) | answer_1 end-of-turn | ...

and each piece is tokenised apart. Hence the prompt that is generated from equals the training prefix token
for token, by construction. The loss is on the answers and on the token that ends each of them, so a model
learns to stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mote.data.conversation import PLACEHOLDER, Conversation, Turn, is_unicode
from mote.data.template import apply_template
from mote.errors import DataError

Messages = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """ids: T token ids, image tokens expanded; loss_mask: T booleans, true where the token is to be
    predicted; image_slots: the positions of ids that the picture's features replace, num_image_tokens of them
    or none."""

    ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    image_slots: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


class Renderer:
    """Renders with one tokenizer and chat template.

    processor: a transformers processor or tokenizer with a chat template. num_image_tokens: features per
    picture. image_token: the token that stands for one feature, a single token of the vocabulary. Raises
    DataError when there is no chat template or the image token is not one token.
    """

    def __init__(self, processor: Any, *, num_image_tokens: int, image_token: str = PLACEHOLDER) -> None:
        self._templater = processor if getattr(processor, "chat_template", None) else _tokenizer(processor)
        self._tokenizer = _tokenizer(processor)
        self._image_token = image_token
        self._count = num_image_tokens
        if not getattr(self._templater, "chat_template", None):
            raise DataError("the tokenizer has no chat template; add chat_template.jinja to the checkpoint")
        self._image_id = self._tokenizer.convert_tokens_to_ids(image_token)
        alone = self._tokenizer(image_token, add_special_tokens=False)["input_ids"]
        self._structured = self._takes_parts()
        if alone != [self._image_id]:
            # Without a token of its own only text can be rendered.
            self._image_id = None
        added = self._tokenizer.added_tokens_decoder
        self._special = {*self._tokenizer.all_special_ids, *(i for i, t in added.items() if t.special)}
        self._reserved = {image_token, *self._tokenizer.convert_ids_to_tokens(sorted(self._special))}

    def render(self, conversation: Conversation) -> Rendered:
        """The whole conversation for training or for scoring its answers. DataError names the row."""
        ids: list[int] = []
        mask: list[bool] = []
        for text, is_answer in self._pieces(conversation.turns, conversation):
            piece = self._encode(text)
            ids += piece
            mask += self._mask(piece, conversation) if is_answer else [False] * len(piece)
        return self._rendered(ids, mask, conversation)

    def prompt(self, conversation: Conversation) -> Rendered:
        """Everything up to the place where the last answer begins: what a model generates from."""
        pieces = self._pieces(conversation.turns, conversation)
        last = max(place for place, (_, is_answer) in enumerate(pieces) if is_answer)
        ids = [token for text, _ in pieces[:last] for token in self._encode(text)]
        return self._rendered(ids, [False] * len(ids), conversation)

    def _pieces(self, turns: Sequence[Turn], conversation: Conversation) -> list[tuple[str, bool]]:
        pieces: list[tuple[str, bool]] = []
        done = ""
        messages: Messages = []
        for number, turn in enumerate(turns):
            self._check(turn, conversation)
            messages.append(self._question(turn.question, with_image=number == 0 and conversation.image is not None))
            prompt = self._apply(messages, generate=True, where=conversation.where)
            messages.append({"role": "assistant", "content": self._content(turn.answer)})
            full = self._apply(messages, generate=False, where=conversation.where)
            if not (prompt.startswith(done) and full.startswith(prompt + turn.answer)):
                raise DataError(
                    f"{conversation.where or conversation.id}: the chat template rewrites earlier turns, so "
                    "that training and generation would differ; use a template that only appends"
                )
            pieces += [(prompt[len(done) :], False), (full[len(prompt) :], True)]
            done = full
        return pieces

    def _check(self, turn: Turn, conversation: Conversation) -> None:
        """A text that spells a special token would become one, and so could end or forge a turn."""
        where = conversation.where or conversation.id
        if not is_unicode(turn.question + turn.answer):
            raise DataError(f"{where}: the text is not valid Unicode; write it again in UTF-8")
        for token in self._reserved:
            if token in turn.question or token in turn.answer:
                raise DataError(f"{where}: the text holds {token!r}, a token of the chat template; take it out")

    def _mask(self, piece: list[int], conversation: Conversation) -> list[bool]:
        """True up to and including the first special token, which ends the turn; false for what follows
        it."""
        end = next((place for place, token in enumerate(piece) if token in self._special), None)
        if end is None:
            where = conversation.where or conversation.id
            raise DataError(f"{where}: the chat template ends an answer without a special token; none could be learned")
        return [place <= end for place in range(len(piece))]

    def _rendered(self, ids: list[int], mask: list[bool], conversation: Conversation) -> Rendered:
        slots = tuple(place for place, token in enumerate(ids) if token == self._image_id)
        expected = self._count if conversation.image is not None else 0
        if len(slots) != expected:
            where = conversation.where or conversation.id
            raise DataError(
                f"{where}: {len(slots)} image tokens after rendering, expected {expected}; does the chat "
                f"template write {self._image_token} once, and is it one token?"
            )
        return Rendered(ids=tuple(ids), loss_mask=tuple(mask), image_slots=slots)

    def _encode(self, text: str) -> list[int]:
        text = text.replace(self._image_token, self._image_token * self._count)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _question(self, text: str, *, with_image: bool) -> dict[str, Any]:
        if not with_image:
            return {"role": "user", "content": self._content(text)}
        if self._structured:
            return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        return {"role": "user", "content": f"{self._image_token}\n{text}"}

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self._structured else text

    def _apply(self, messages: Messages, *, generate: bool, where: str = "") -> str:
        return apply_template(self._templater, messages, generate=generate, where=where)

    def _takes_parts(self) -> bool:
        """Whether the template understands content as a list of parts (image, text), as a processor's
        does."""
        probe = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "probe"}]}]
        try:
            text = self._apply(probe, generate=True)
        except DataError:  # the answer to the question is then no
            return False
        return text.count(self._image_token) == 1 and "probe" in text and "'type'" not in text


def render(
    conversation: Conversation,
    processor: Any,
    *,
    num_image_tokens: int,
    image_token: str = PLACEHOLDER,
    max_length: int | None = None,
) -> Rendered:
    """The whole conversation, cut to `max_length` tokens; see `Renderer`. DataError if no answer is left."""
    rendered = renderer(processor, num_image_tokens=num_image_tokens, image_token=image_token).render(conversation)
    return rendered if max_length is None else _cut(rendered, max_length, conversation)


def renderer(processor: Any, *, num_image_tokens: int, image_token: str = PLACEHOLDER) -> Renderer:
    """A `Renderer`, kept for the next call with the same processor and chat template."""
    template = getattr(processor, "chat_template", None) or getattr(_tokenizer(processor), "chat_template", None)
    return _renderer(processor, str(template), num_image_tokens, image_token)


@lru_cache(maxsize=8)
def _renderer(processor: Any, template: str, num_image_tokens: int, image_token: str) -> Renderer:
    return Renderer(processor, num_image_tokens=num_image_tokens, image_token=image_token)


def _cut(rendered: Rendered, length: int, conversation: Conversation) -> Rendered:
    mask = rendered.loss_mask[:length]
    if (rendered.image_slots and rendered.image_slots[-1] >= length) or not any(mask):
        where = conversation.where or conversation.id
        raise DataError(
            f"{where}: {len(rendered)} tokens, no answer fits into max_length={length}; raise it or drop the row"
        )
    return Rendered(ids=rendered.ids[:length], loss_mask=mask, image_slots=rendered.image_slots)


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)
