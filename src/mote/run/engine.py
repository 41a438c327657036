"""The engine: a checkpoint answers from its mapped files, without transformers' language model.

    engine = mote.load("runs/packed")
    print(engine.ask("cat.png", "What is this?"))

or token by token:

    sequence = engine.sequence()
    logits = engine.prefill(sequence, ids, ["cat.png"])
    sequence.append(int(logits.argmax()))
    logits = engine.step([sequence])[0]
    engine.free(sequence)
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from mote.checkpoint.resident import CONTEXT, resident, warn_of_memory
from mote.checkpoint.shards import Checkpoint
from mote.data.conversation import Conversation
from mote.errors import CheckpointError, EngineError, UnsupportedModelError
from mote.model.families import IMAGE_TOKENS
from mote.run.cache import Sequence as Text
from mote.run.decoding import Decoding
from mote.run.families import why_not
from mote.run.generate import Answer, Token, generate
from mote.run.picture import Picture, Sight
from mote.run.prompt import Prompter
from mote.run.sampling import Sampling
from mote.run.weights import Weights

MAX_NEW_TOKENS = 128


class Engine(Decoding):
    """A checkpoint that answers; make one with `mote.load`.

    prompter: renders questions with the checkpoint's chat template. opening: seconds that "imports" of transformers,
    "processor" (with its tokenizer) and "weights" took. Everything else is `Decoding`'s.
    """

    backend = "native"

    def __init__(self, weights: Weights, prompter: Prompter, **options: Any) -> None:
        super().__init__(weights, **options)
        self.prompter = prompter
        self.opening: dict[str, float] = {}

    def ask(
        self,
        image: str | PathLike[str] | None,
        question: str,
        *,
        stream: Callable[[str], None] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        **options: Any,
    ) -> str:
        """The answer to one question, about a picture unless `image` is None; greedy unless `sampling` says otherwise.

        stream: is called with each piece of text as it appears. options: of `answer`. Raises DataError for a picture
        that cannot be read, UnsupportedModelError for a picture shown to a model without eyes.
        """
        return self.answer(image, question, stream=stream, max_new_tokens=max_new_tokens, **options).text

    def answer(
        self,
        image: str | PathLike[str] | None,
        question: str,
        *,
        stream: Callable[[str], None] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
    ) -> Answer:
        """As `ask`, with tokens, log-probabilities, why it ended, and where the time went."""
        conversation = self.prompter.question(None if image is None else Path(image), question)
        seconds, reused = {"tower_loading": 0.0, "seeing": 0.0, "prefill": 0.0, "decode": 0.0}, self.reused
        begun = time.perf_counter()
        with self.prefilled(conversation, seconds) as (sequence, logits, ends):
            prompt = sequence.length
            started = time.perf_counter()
            tokens: list[Token] = []
            for token in generate(
                *(self, sequence, logits),
                max_tokens=max_new_tokens,
                ends=ends,
                stop=stop,
                sampling=sampling,
                decode=self.prompter.text,
            ):
                tokens.append(token)
                if stream is not None and token.text:
                    stream(token.text)
        seconds["prefill"] = started - begun - seconds["seeing"] - seconds["tower_loading"]
        seconds["decode"] = time.perf_counter() - started
        return Answer(
            text="".join(token.text for token in tokens).strip(),
            tokens=tuple(token.id for token in tokens),
            logprobs=tuple(token.logprob for token in tokens),
            finish=tokens[-1].finish or "length",
            prompt_tokens=prompt,
            reused_tokens=self.reused - reused,
            seconds=seconds,
        )

    def generate(
        self, sequence: Text, logits: Any, *, max_tokens: int = MAX_NEW_TOKENS, **options: Any
    ) -> Iterator[Token]:
        """Streams a continuation of a prefilled sequence; options as `mote.run.generate.generate` has them."""
        options.setdefault("decode", self.prompter.text)
        return generate(self, sequence, logits, max_tokens=max_tokens, **options)

    @contextmanager
    def prefilled(
        self, conversation: Conversation, seconds: dict[str, float] | None = None
    ) -> Iterator[tuple[Text, Any, set[int]]]:
        """(sequence, logits after the prompt, tokens that end the answer) of a conversation; freed afterwards.

        A cancellation that came too late to end this question is forgotten with it.
        """
        sequence = self.sequence()
        try:
            pictures = [] if conversation.image is None else [self._seen(conversation.image, seconds)]
            count = sum(len(picture.embeddings) for picture in pictures)
            logits = self.prefill(sequence, self.prompter.prompt(conversation, count), pictures)
            yield sequence, logits, self.prompter.ends(conversation, count)
        finally:
            self.free(sequence)
            self._cancel.value = 0

    def _seen(self, image: Path, seconds: dict[str, float] | None) -> Picture:
        """The picture in the file `image`; the time that it took goes into `seconds`."""
        loaded, begun = 0.0 if self.sight is None else self.sight.loading, time.perf_counter()
        picture = self.picture(image)
        if seconds is not None and self.sight is not None:
            seconds["tower_loading"] = self.sight.loading - loaded
            seconds["seeing"] = time.perf_counter() - begun - seconds["tower_loading"]
        return picture


def open_engine(
    directory: Path,
    *,
    threads: int = 0,
    kv: str = "bf16",
    features: Path | None = None,
    blind: bool = False,
) -> "Engine | str":
    """The engine of a checkpoint, or in a few words why it has none.

    kv: numbers of the key-value cache, "bf16" or "f32". features: cache of vision features on disk. blind: pictures'
    features are zero. Raises CheckpointError for a directory that is no checkpoint or lacks processor and tokenizer,
    EngineError for another `kv`. Warns, in one line, of a checkpoint that does not fit in the memory that is free.
    """
    if kv not in ("bf16", "f32"):
        raise EngineError(f"kv={kv!r}: no such numbers for the key-value cache; use bf16 or f32")
    begun = time.perf_counter()
    from transformers import AutoProcessor  # noqa: F401  so that its time is told from that of reading

    from mote.model.opening import open_config, open_processor_files

    checkpoint = Checkpoint.open(directory)
    if checkpoint.state == "upcycled":
        return "up-cycled experts are floats that are quantised on the fly; pack the checkpoint"
    config = open_config(checkpoint)
    imported = time.perf_counter()
    try:
        if reason := why_not(config, checkpoint.tensors):
            return reason
        weights = Weights(checkpoint, config, kv=kv)
    except UnsupportedModelError as error:
        return str(error)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        path = checkpoint.root / "config.json"
        raise CheckpointError(f"{path}: no decoder can be made of it ({type(error).__name__}: {error})") from error
    mapped = time.perf_counter()
    positions = int(config.get_text_config().max_position_embeddings)
    _warn_of_memory(checkpoint, kv, positions)
    image_token = next((getattr(config, n) for n in IMAGE_TOKENS if getattr(config, n, None) is not None), None)
    processor = open_processor_files(checkpoint.root)
    _check_tokens(checkpoint.root, processor, weights.embedding.rows, image_token)
    eyes = image_token is not None and hasattr(processor, "image_processor")
    read = time.perf_counter()
    engine = Engine(
        weights,
        Prompter(processor, image_token, _ends(checkpoint, config)),
        positions=positions,
        sight=Sight(checkpoint, config, processor, features, blind=blind) if eyes else None,
        image_token_id=image_token,
        threads=threads,
    )
    engine.opening = {"imports": imported - begun, "weights": mapped - imported, "processor": read - mapped}
    return engine


def _warn_of_memory(checkpoint: Checkpoint, kv: str, positions: int) -> None:
    """A warning where a short text and a picture would not fit in what is free now."""
    from mote.model.precision import computes_in_bf16, device_of

    width = 2 if computes_in_bf16(device_of("cpu")) else 4
    context = min(positions, CONTEXT)
    needs = resident(
        *(checkpoint.tensors.values(), checkpoint.mote), context=context, kv=kv, tower_bytes_per_weight=width
    )
    warn_of_memory(needs, str(checkpoint.root), stacklevel=4)


def _check_tokens(root: Path, processor: Any, rows: int, image: int | None) -> None:
    """`check_processor`, which takes a while for a large vocabulary, unless the number of tokens says enough: a single
    id beyond the embeddings is refused where a prompt holds it."""
    from mote.model.opening import check_processor

    tokenizer = getattr(processor, "tokenizer", processor)
    if len(tokenizer) > rows or (image is not None and tokenizer.convert_ids_to_tokens(image) is None):
        check_processor(root, processor, rows, image)


def _ends(checkpoint: Checkpoint, config: Any) -> Any:
    """End tokens as transformers finds them: of generation_config.json, or else of the config."""
    path = checkpoint.root / "generation_config.json"
    ends = getattr(config.get_text_config(), "eos_token_id", None)
    if path.is_file():
        try:
            ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: not a JSON object ({error}); fetch it again") from None
    else:
        path = checkpoint.root / "config.json"
    if not all(isinstance(token, int) for token in (ends if isinstance(ends, list) else [ends or 0])):
        raise CheckpointError(f"{path}: eos_token_id {ends!r} is no token id; correct it")
    return ends
