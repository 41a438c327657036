"""`mote.load`: a checkpoint of any state, opened to answer questions about pictures.

    assistant = mote.load("runs/packed") print(assistant.ask("cat.png", "What is this?"))

The prompt is the one that training used (`mote.data.render`); decoding is greedy, so an answer is reproducible.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from mote.checkpoint.shards import Checkpoint
from mote.data.conversation import Conversation, Turn
from mote.data.images import open_image
from mote.data.render import Renderer, renderer
from mote.errors import CheckpointError, UnsupportedModelError
from mote.model.families import anatomy
from mote.model.vision import connect, encoder_outputs, vision_features

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

    @torch.inference_mode()
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
        inputs: dict[str, Any] = {}
        features, tokens = self._see(image) if image is not None else (None, 0)
        rendering = self._renderer(tokens)
        turns = (Turn(question=question, answer="-"),)
        conversation = Conversation(id="ask", image=Path(image) if image is not None else None, turns=turns)
        ids = torch.tensor([rendering.prompt(conversation).ids], device=self.model.device)
        if features is not None:
            inputs["mm_encoder_outputs"] = encoder_outputs(self.model, features)
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=self._stops(rendering, conversation),
            pad_token_id=self._tokenizer.pad_token_id,
            streamer=None if stream is None else _streamer(self._tokenizer, stream),
            **inputs,
        )
        answer: str = self._tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        return answer.strip()

    def _see(self, image: str | PathLike[str]) -> tuple[torch.Tensor, int]:
        """The connector's input for one picture [1, P, D], and how many image tokens it becomes."""
        picture = open_image(Path(image))
        images = getattr(self.processor, "image_processor", None)
        if images is None:
            raise UnsupportedModelError("this checkpoint has no image processor; ask it without a picture")
        pixels = images(picture, return_tensors="pt")["pixel_values"].to(self.model.device)
        features = vision_features(self.model, pixels)
        return features, connect(self.model, features).shape[1]

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
        if configured is None:
            configured = []
        return sorted({answer[-1], *(configured if isinstance(configured, list) else [configured])})


def load(directory: str | PathLike[str], *, device: str = "cpu") -> Assistant:
    """Opens a checkpoint directory, dense, up-cycled or packed, to ask it questions.

    device: where the model runs, such as "cpu" or "cuda". Raises CheckpointError for a directory that is no checkpoint
    or lacks a processor and tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

    checkpoint = Checkpoint.open(Path(directory))
    auto = AutoModelForImageTextToText if "vision_config" in checkpoint.config else AutoModelForCausalLM
    model = auto.from_pretrained(checkpoint.root).to(device)
    try:
        processor = AutoProcessor.from_pretrained(checkpoint.root)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{directory}: no usable processor or tokenizer: {str(error).splitlines()[0]}") from None
    return Assistant(model, processor)


def _streamer(tokenizer: Any, stream: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                stream(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
