"""What happened to the tokens of one forward pass: masks in, loads, entropy and the balance loss out.

Balance loss of a layer (Switch Transformer, equation 4), over the tokens that are not padding:

    L = N * sum_i f_i P_i      f_i: share of the routed slots that went to expert i, P_i: its mean probability

which is 1.0 for a perfect balance. One `RoutingContext` is shared by all blocks of a model. A pre-hook on the decoder
opens a pass and takes the attention mask; one on the whole model finds the image tokens; `RoutingContext.masks` sets
both by hand for a caller who enters elsewhere. Recording costs a few small operations per layer and happens in training
mode or while someone collects; otherwise a block records nothing.

Gradient checkpointing runs a block twice per pass: the first record stands, so nothing counts double. The reentrant
kind runs the first time without gradients, where the balance loss cannot have one: that is an error, not a silent zero.

Shapes: B rows, S columns, T = B*S tokens, N experts, k chosen per token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mote.errors import MoteError, TrainingError

if TYPE_CHECKING:
    from mote.model.router import Route


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One layer in one pass; all over tokens that are not padding.

    balance: scalar with gradient; load_text_N, load_image_N: routed slots per expert (counts, fp32, no gradient);
    entropy: mean entropy of p in nats; mean_gate: mean over tokens of the sum of the chosen gates.
    """

    balance: Tensor
    load_text_N: Tensor
    load_image_N: Tensor
    entropy: Tensor
    mean_gate: Tensor
    tokens: Tensor


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """`LayerRecord`s as plain numbers: per-expert loads summed, the means weighted by tokens."""

    load_text: list[float]
    load_image: list[float]
    entropy: float
    mean_gate: float
    balance: float
    tokens: float

    @property
    def load(self) -> list[float]:
        """Share of the routed slots per expert, text and image tokens together (0-1)."""
        slots = [a + b for a, b in zip(self.load_text, self.load_image, strict=True)]
        total = sum(slots) or 1.0
        return [count / total for count in slots]


class RoutingContext:
    """Masks and records of the current forward pass of one model."""

    def __init__(self, balance_coefficient: float = 0.01, image_token_id: int | None = None) -> None:
        self.balance_coefficient = balance_coefficient
        self.image_token_id = image_token_id
        self._token_mask_BS: Tensor | None = None
        self._image_mask_BS: Tensor | None = None
        self._pinned: tuple[Tensor | None, Tensor | None] | None = None
        self._records: dict[int, LayerRecord] = {}
        self._history: list[dict[int, LayerRecord]] | None = None

    # Hooks are bound methods, so that copying a model copies its context with it.

    def enter_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the whole model: finds the image tokens among the input ids."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._image_mask_BS = None
        if self.image_token_id is not None and isinstance(ids, Tensor):
            self._image_mask_BS = torch.eq(ids, self.image_token_id)

    def leave_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Hook of the whole model: adds the balance loss to `output.loss` in training."""
        if not module.training or not self._records or not torch.is_grad_enabled():
            return output
        if isinstance(output, tuple):
            if kwargs.get("labels") is None:
                return output
            return (
                output[0] + self.balance_coefficient * self._weight(kwargs) * self.balance_loss(),
                *output[1:],
            )
        if getattr(output, "loss", None) is not None:
            output.loss = output.loss + self.balance_coefficient * self._weight(kwargs) * self.balance_loss()
        return output

    def enter_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the decoder: opens a pass and takes the attention mask, when it is a mask over tokens [B, S]."""
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if self._pinned is not None:
            self._token_mask_BS, self._image_mask_BS = self._pinned
        else:
            self._token_mask_BS = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self._records = {}
        if self._history is not None:
            self._history.append(self._records)

    def leave_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook of the decoder: the image tokens found by `enter_model` belong to this pass only."""
        self._image_mask_BS = None

    @property
    def recording(self) -> bool:
        """Whether a block in eval mode should record."""
        return self._history is not None

    def record(self, layer: int, route: "Route", shape_BS: tuple[int, int]) -> None:
        """Stores what layer `layer` decided for the tokens of a [B, S] batch."""
        token_T = self._flat(self._token_mask_BS, shape_BS, "attention mask")
        image_T = self._flat(self._image_mask_BS, shape_BS, "image-token mask")
        record = _measure(route, token_T, image_T)
        before = self._records.get(layer)
        if before is None:
            self._records[layer] = record
        elif record.balance.requires_grad and not before.balance.requires_grad:
            raise TrainingError(
                "reentrant gradient checkpointing loses the gradient of the balance loss; enable it with "
                "gradient_checkpointing_kwargs={'use_reentrant': False}"
            )

    def balance_loss(self) -> Tensor:
        """Balance loss of the last pass, summed over layers (fp32 scalar with gradient, without the coefficient)."""
        if not self._records:
            raise TrainingError("no routing was recorded; run a forward pass in training mode first")
        return torch.stack([r.balance for r in self._records.values()]).sum()

    def statistics(self) -> dict[int, LayerStatistics]:
        """Statistics of the last recorded pass by layer index; empty when nothing was recorded."""
        return _summarise([self._records])

    @contextmanager
    def collect(self) -> Iterator["Collected"]:
        """Records every pass inside the `with`, in eval mode too; the yielded object sums them up."""
        if self._history is not None:
            raise MoteError("routing is being collected already; leave the outer collect() first")
        self._history = []
        collected = Collected(self._history)
        try:
            yield collected
        finally:
            self._history = None

    @contextmanager
    def masks(self, token_mask: Tensor | None, image_mask: Tensor | None) -> Iterator["RoutingContext"]:
        """Sets both masks [B, S] by hand for the passes inside the `with`."""
        before, self._pinned = self._pinned, (token_mask, image_mask)
        try:
            yield self
        finally:
            self._pinned = before

    @staticmethod
    def _weight(kwargs: dict[str, Any]) -> Tensor | float:
        """This micro-batch's share of the tokens that the caller averages over (Trainer's `num_items_in_batch`).

        The language-model loss is then a sum over all micro-batches divided by that number; a balance loss added whole
        to each of them would count once per accumulation step.
        """
        total, labels = kwargs.get("num_items_in_batch"), kwargs.get("labels")
        if total is None or labels is None:
            return 1.0
        return (labels[..., 1:] != -100).sum() / total

    @staticmethod
    def _flat(mask_BS: Tensor | None, shape_BS: tuple[int, int], what: str) -> Tensor | None:
        """The mask's last S columns as a boolean vector over tokens (a cache makes masks longer than the input)."""
        if mask_BS is None:
            return None
        rows, columns = shape_BS
        if mask_BS.ndim != 2 or mask_BS.shape[0] != rows or mask_BS.shape[1] < columns:
            raise TrainingError(f"routing: {what} of shape {tuple(mask_BS.shape)} does not fit tokens {shape_BS}")
        return mask_BS[:, mask_BS.shape[1] - columns :].reshape(-1).bool()


class Collected:
    """Passes gathered by `RoutingContext.collect`."""

    def __init__(self, history: list[dict[int, LayerRecord]]) -> None:
        self._history = history

    def statistics(self) -> dict[int, LayerStatistics]:
        """Statistics over all passes by layer index: loads summed, means weighted by tokens."""
        return _summarise(self._history)


def _measure(route: "Route", token_T: Tensor | None, image_T: Tensor | None) -> LayerRecord:
    p_TN, expert_Tk, gate_Tk = route
    num_experts, k = p_TN.shape[1], expert_Tk.shape[1]
    with torch.autocast(p_TN.device.type, enabled=False):
        valid_T = torch.ones_like(p_TN[:, 0]) if token_T is None else token_T.to(p_TN.dtype)
        tokens = valid_T.sum()
        count = tokens.clamp_min(1)
        with torch.no_grad():
            slot_TN = torch.zeros_like(p_TN).scatter_(1, expert_Tk, 1.0) * valid_T[:, None]
            load_N = slot_TN.sum(0)
            load_image_N = torch.zeros_like(load_N) if image_T is None else slot_TN[image_T].sum(0)
            entropy_T = -torch.special.xlogy(p_TN, p_TN).sum(-1)
            entropy = (entropy_T * valid_T).sum() / count
            mean_gate = (gate_Tk.sum(-1) * valid_T).sum() / count
        probability_N = (p_TN * valid_T[:, None]).sum(0) / count
        balance = num_experts * (load_N / (count * k) * probability_N).sum()
    return LayerRecord(
        balance=balance,
        load_text_N=load_N - load_image_N,
        load_image_N=load_image_N,
        entropy=entropy,
        mean_gate=mean_gate,
        tokens=tokens,
    )


def _summarise(passes: list[dict[int, LayerRecord]]) -> dict[int, LayerStatistics]:
    summary = {}
    for layer in sorted({layer for records in passes for layer in records}):
        records = [r[layer] for r in passes if layer in r]
        tokens = torch.stack([r.tokens for r in records])
        share = tokens / tokens.sum().clamp_min(1)

        def mean(values: list[Tensor], share: Tensor = share) -> float:
            return float((torch.stack(values).detach() * share).sum())

        summary[layer] = LayerStatistics(
            load_text=torch.stack([r.load_text_N for r in records]).sum(0).tolist(),
            load_image=torch.stack([r.load_image_N for r in records]).sum(0).tolist(),
            entropy=mean([r.entropy for r in records]),
            mean_gate=mean([r.mean_gate for r in records]),
            balance=mean([r.balance for r in records]),
            tokens=float(tokens.sum()),
        )
    return summary
