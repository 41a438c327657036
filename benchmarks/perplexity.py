"""A language model under test: losses on windows of a text, and how far its predictions are from what they were.

In fp32, or in bf16, whose products are emulated where the processor has no instructions for them.
"""

import copy
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mote.compress.calibration import Batch, read_calibration, text_batches
from mote.model.families import anatomy
from mote.model.precision import Precision, autocast, computes_in_bf16

WINDOW, TESTED, CALIBRATED = 512, 32, 64
"""Tokens of a window; windows whose losses count, and others to calibrate on."""
COMPARED = 8
"""Windows whose predictions are compared."""
_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


class Float32Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """bf16 products of linear layers in fp32 arithmetic: bf16 factors, fp32 sums, a bf16 result, as bf16 instructions
    have them.

    On a processor without those PyTorch's own products take six times as long as fp32's.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS and args[-1].dtype == torch.bfloat16:
            return func(*(tensor.float() for tensor in args), **kwargs or {}).bfloat16()
        return func(*args, **kwargs or {})


def is_emulated(precision: Precision) -> bool:
    """Whether rows of that precision go through `Float32Products` here."""
    return precision == "bf16" and not computes_in_bf16(torch.device("cpu"))


def products(precision: Precision) -> AbstractContextManager[object]:
    """Under which rows of that precision are measured."""
    return Float32Products() if is_emulated(precision) else nullcontext()  # type: ignore[no-untyped-call]


class Subject:
    """A model under test, a new one for every row; dithered: by `dither`."""

    def __init__(self, path: Path, mix: Path | None, precision: Precision, *, dithered: bool = False) -> None:
        self._path, self._mix, self._precision, self._dithered = path, mix, precision, dithered

    def load(self) -> Any:
        """The model in fp32."""
        if self._path.suffix == ".gguf":
            model = copy.deepcopy(self._from_gguf[0])
        else:
            from mote.model.opening import open_model

            model = open_model(self._path).float().eval()
        if self._dithered:
            dither(model)
        return model

    @cached_property
    def _from_gguf(self) -> Any:
        from mote.assemble.language import load_language_model

        model, tokenizer = load_language_model(self._path)
        return model.float().eval(), tokenizer

    @cached_property
    def ids(self) -> list[int]:
        """The text as tokens."""
        if self._path.suffix == ".gguf":
            tokenizer = self._from_gguf[1]
        else:
            from mote.model.opening import open_processor_files

            processor = open_processor_files(self._path)
            tokenizer = getattr(processor, "tokenizer", processor)
        return list(tokenizer(text(), add_special_tokens=False)["input_ids"])

    @cached_property
    def before(self) -> list[Tensor]:
        """Log-probabilities of the model as it is, fp16 [WINDOW, vocabulary], of the first `COMPARED` windows."""
        model = self._as_it_is()
        windows = torch.tensor(self.ids[: WINDOW * COMPARED]).view(COMPARED, WINDOW)
        return [self.logits(model, ids[None])[0].log_softmax(-1).half() for ids in windows]

    @cached_property
    def losses(self) -> list[float]:
        """Those of the model as it is."""
        return scores(self._as_it_is(), self, 0)[0]

    def _as_it_is(self) -> Any:
        """The model, not to be written to: no second copy where there is one."""
        return self._from_gguf[0] if self._path.suffix == ".gguf" and not self._dithered else self.load()

    @torch.no_grad()
    def logits(self, model: Any, ids: Tensor) -> Tensor:
        """fp32 [B, T, vocabulary], computed in the precision of the rows; ids: int64 [B, T]."""
        with autocast(model.device, self._precision):
            found: Tensor = model(input_ids=ids, use_cache=False).logits
        return found.float()

    def batches(self, calibration: str, model: Any) -> tuple[Batch, ...]:
        """What calibration reads: other windows of the "text", or the "mix"."""
        if calibration == "text":
            return text_batches(self.ids[WINDOW * TESTED :], window=WINDOW, count=CALIBRATED)
        from mote.model.opening import open_processor

        if self._mix is None:
            raise SystemExit("ptq: rows calibrated on the mix need --mix FILE")
        read = read_calibration(
            self._mix, model, open_processor(self._path, model), samples=640, max_length=WINDOW, seed=0
        )
        return read.batches


@torch.no_grad()
def dither(model: Any) -> None:
    """Moves the weights of the decoder's layers off the 4-bit grid that they came on: each by up to half a step of its
    own group of 32 with a minimum (Q4_1), at random, always the same."""
    generator = torch.Generator().manual_seed(0)
    layers: Any = anatomy(model).decoder.layers
    for module in layers.modules():
        if isinstance(module, torch.nn.Linear):
            groups = module.weight.view(len(module.weight), -1, 32)
            step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
            groups.add_((torch.rand(groups.shape, generator=generator) - 0.5) * step)


def text() -> str:
    """Python's language reference, topic by topic."""
    from pydoc_data import topics

    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))


def scores(model: Any, subject: Subject, compared: int) -> tuple[list[float], list[float]]:
    """(mean negative log-likelihood of each window, KL(before || after) of the first `compared`), in nats a token."""
    found: list[float] = []
    apart: list[float] = []
    for ids in torch.tensor(subject.ids[: WINDOW * TESTED]).view(-1, 4, WINDOW):
        for own, after in zip(ids, subject.logits(model, ids).log_softmax(-1), strict=True):
            found.append(float(torch.nn.functional.nll_loss(after[:-1], own[1:])))
            if len(apart) < compared:
                before = subject.before[len(apart)].float()
                pointwise = torch.nn.functional.kl_div(after, before, reduction="none", log_target=True)
                apart.append(float(pointwise.sum(-1).mean()))
    return found, apart
