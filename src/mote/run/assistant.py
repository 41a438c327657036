"""`mote.load`: a checkpoint of any state, opened to answer questions about pictures.

    assistant = mote.load("runs/packed")
    print(assistant.ask("cat.png", "What is this?"))

What the engine runs, it runs; everything else is transformers' own model (`Assistant`), with packed layers on the
native kernels where there are some. Both have an `ask`, greedy and so reproducible, with the prompt that training used
(`mote.data.render`); the engine's also samples and takes stop strings.
"""

import warnings
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from mote.checkpoint.resident import loaded, warn_of_memory
from mote.checkpoint.shards import Checkpoint
from mote.errors import UnsupportedModelError
from mote.model.families import anatomy
from mote.model.features import PictureFeatures
from mote.model.opening import open_model, open_processor
from mote.model.precision import autocast, computes_in_bf16, device_of, widen
from mote.model.vision import connect, encoder_outputs
from mote.run.engine import MAX_NEW_TOKENS, Engine, open_engine
from mote.run.prompt import Prompter


class Assistant:
    """A transformers model in eval mode with its processor; made by `load` for what the engine does not run.

    model: dense, up-cycled or packed. processor: the checkpoint's processor, or its tokenizer for a model without eyes.
    features: cache of vision features on disk, or None.
    """

    backend = "transformers"

    def __init__(self, model: Any, processor: Any, features: Path | None = None) -> None:
        self.model = model.eval()
        self.processor = processor
        self._folder = features
        self._image_token_id = anatomy(model).image_token_id
        self._prompter = Prompter(processor, self._image_token_id, model.generation_config.eos_token_id)

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
        conversation = self._prompter.question(None if image is None else Path(image), question)
        features = None if image is None else self._see(Path(image))
        tokens = 0 if features is None else connect(self.model, features).shape[1]
        ids = torch.tensor([self._prompter.prompt(conversation, tokens)], device=self.model.device)
        with autocast(self.model.device):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=1,  # whatever the checkpoint's generation_config says
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(self._prompter.ends(conversation, tokens)),
                pad_token_id=self._prompter.tokenizer.pad_token_id,
                streamer=None if stream is None else _streamer(self._prompter.tokenizer, stream),
                **({} if features is None else {"mm_encoder_outputs": encoder_outputs(self.model, features)}),
            )
        return self._prompter.text(output[0, ids.shape[1] :].tolist()).strip()

    def _see(self, image: Path) -> torch.Tensor:
        """The connector's input for one picture, [1, P, D], in the connector's dtype."""
        if self._image_token_id is None or not hasattr(self.processor, "image_processor"):
            raise UnsupportedModelError("this checkpoint has no vision tower; ask it without a picture")
        features = PictureFeatures(self.model, self.processor, self._folder)([image])
        connector: Any = anatomy(self.model).connector
        return features.to(self.model.device, next(connector.parameters()).dtype)


def load(
    directory: str | PathLike[str],
    *,
    device: str = "cpu",
    threads: int = 0,
    kv: str = "bf16",
    features: str | PathLike[str] | None = None,
) -> "Engine | Assistant":
    """Opens a checkpoint directory, dense, up-cycled or packed, to ask it questions.

    On the CPU a packed or dense model of a family in the engine's table becomes an `Engine`; any other model, an
    up-cycled one, and every model on another device an `Assistant`. A packed or dense model that could not have the
    engine is worth a warning, which says why.

    device: where the model runs, such as "cpu" or "cuda". threads: of the engine; 0 for all cores. kv: numbers in the
    engine's key-value cache, "bf16" or "f32". features: cache of vision features on disk, by default none. Raises
    CheckpointError for a directory that is no checkpoint or lacks a processor and tokenizer.
    """
    root, folder = Path(directory), None if features is None else Path(features)
    chosen = device_of(device)
    if chosen.type == "cpu":
        engine = open_engine(root, threads=threads, kv=kv, features=folder)
        if isinstance(engine, Engine):
            return engine
        checkpoint = Checkpoint.open(root)
        widened = not computes_in_bf16(chosen)
        warn_of_memory(loaded(checkpoint.tensors.values(), checkpoint.mote, widened=widened), str(root))
        if checkpoint.state != "upcycled":
            warnings.warn(f"{root}: runs in transformers, not in mote's engine: {engine}", stacklevel=2)
    model = open_model(root).to(chosen)
    widen(model)
    return Assistant(model, open_processor(root, model), folder)


def _streamer(tokenizer: Any, stream: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                stream(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
