"""`mote.load`: a checkpoint of any state, opened to answer questions about pictures.

    assistant = mote.load("runs/packed") print(assistant.ask("cat.png", "What is this?"))

The prompt is the one that training used (`mote.data.render`); decoding is greedy, so an answer is reproducible.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from mote.data.conversation import Conversation, Turn
from mote.data.render import Renderer, renderer
from mote.errors import UnsupportedModelError
from mote.model.families import anatomy
from mote.model.features import PictureFeatures
from mote.model.opening import open_model, open_processor
from mote.model.precision import autocast, device_of
from mote.model.vision import connect, encoder_outputs

MAX_NEW_TOKENS = 128


class Assistant:
    """A model in eval mode with its processor; make one with `load`.

    model: the transformers model, dense, up-cycled or packed. processor: the checkpoint's processor, or its tokenizer
    for a model without eyes.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model.eval()
        self.processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._image_token_id = anatomy(model).image_token_id

    @torch.no_grad()
    def ask(
        self,
        image: str | PathLike[str] | None,
        question: str,
        *,
        stream: Callable[[str], None] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> str:
        """The greedy answer to one question, about a picture unless `image` is None.

        stream: is called with each piece of text as it appears. Raises DataError for a picture that cannot be read,
        UnsupportedModelError for a picture shown to a model without eyes.
        """
        rows = (Turn(question=question, answer="-"),)  # the prompt ends where this answer would begin
        conversation = Conversation(id="ask", image=None if image is None else Path(image), turns=rows)
        features = None if image is None else self._see(Path(image))
        tokens = 0 if features is None else connect(self.model, features).shape[1]
        rendering = self._renderer(tokens)
        ids = torch.tensor([rendering.prompt(conversation).ids], device=self.model.device)
        with autocast(self.model.device):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,  # whatever the checkpoint's generation_config says
                max_new_tokens=max_new_tokens,
                eos_token_id=self._stops(rendering, conversation),
                pad_token_id=self._tokenizer.pad_token_id,
                streamer=None if stream is None else _streamer(self._tokenizer, stream),
                **({} if features is None else {"mm_encoder_outputs": encoder_outputs(self.model, features)}),
            )
        answer: str = self._tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        return answer.strip()

    def _see(self, image: Path) -> torch.Tensor:
        """The connector's input for one picture, [1, P, D], in the connector's dtype."""
        if self._image_token_id is None or not hasattr(self.processor, "image_processor"):
            raise UnsupportedModelError("this checkpoint has no vision tower; ask it without a picture")
        features = PictureFeatures(self.model, self.processor, None)([image])
        return features.to(self.model.device, self.model.get_input_embeddings().weight.dtype)

    def _renderer(self, num_image_tokens: int) -> Renderer:
        if self._image_token_id is None:
            return renderer(self._tokenizer, num_image_tokens=num_image_tokens)
        token = self._tokenizer.convert_ids_to_tokens(self._image_token_id)
        return renderer(self.processor, num_image_tokens=num_image_tokens, image_token=token)

    def _stops(self, rendering: Renderer, conversation: Conversation) -> list[int]:
        """Tokens that end an answer: the template's end of turn, and the generation config's."""
        rendered = rendering.render(conversation)
        answer = [token for token, learnt in zip(rendered.ids, rendered.loss_mask, strict=True) if learnt]
        configured = self.model.generation_config.eos_token_id
        return sorted(
            {
                answer[-1],
                *(configured if isinstance(configured, list) else [answer[-1] if configured is None else configured]),
            }
        )


def load(directory: str | PathLike[str], *, device: str = "cpu") -> Assistant:
    """Opens a checkpoint directory, dense, up-cycled or packed, to ask it questions.

    device: where the model runs, such as "cpu" or "cuda". Raises CheckpointError for a directory that is no checkpoint
    or lacks a processor and tokenizer.
    """
    root = Path(directory)
    model = open_model(root).to(device_of(device))
    return Assistant(model, open_processor(root, model))


def _streamer(tokenizer: Any, stream: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                stream(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
