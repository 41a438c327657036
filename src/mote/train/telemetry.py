"""What a training run records, and the failure signatures it watches for.

A row of `losses.jsonl` (and the same values for TensorBoard): loss, balance loss per layer (1.0 is perfect), learning
rate, seconds; for a mixture also the largest load of an expert and the smallest, router entropy, mean gate, the share
of ternary weights that are zero, and the share that changed its value since the last row, measured on every
`ROW_STRIDE`-th row of every matrix.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from mote.model.routing import LayerStatistics

ROW_STRIDE = 16
COLLAPSE_SHARE = 0.1
"""An expert that gets less than this share of its fair load (1/N) is called starved."""
FORGETTING_RATIO = 1.2
"""Text perplexity, or held-out loss, that grew by more than this factor is called forgetting."""
UNDERFIT_MARGIN = 0.02
"""Experts whose loss fell by less than this share over the run are called underfitting."""


def progress_bar(title: str) -> Progress:
    """The progress display that every part of training uses: title, bar, count, elapsed, left, note."""
    return Progress(
        TextColumn(f"{title:<24}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


class TernaryWatch:
    """Share of zeros, and of values that changed since the last look, over sampled rows of ternary weights.

    quantized: gives, by parameter name, integer weights [E, N, K] in {-1, 0, 1} as they are in the forward pass.
    """

    def __init__(self, quantized: Callable[[], Mapping[str, Tensor]]) -> None:
        self._quantized = quantized
        self._last: dict[str, Tensor] = {}

    def look(self) -> dict[str, float]:
        """{"zeros": share, "flips": share}; no "flips" at the first look."""
        sampled = {name: q[:, ::ROW_STRIDE].to(torch.int8) for name, q in self._quantized().items()}
        count = sum(q.numel() for q in sampled.values())
        if not count:
            return {}
        row = {"zeros": sum(int((q == 0).sum()) for q in sampled.values()) / count}
        if self._last:
            row["flips"] = sum(int((q != self._last[name]).sum()) for name, q in sampled.items()) / count
        self._last = sampled
        return row


class Telemetry(TrainerCallback):  # type: ignore[misc]
    """Writes a row every `args.logging_steps` steps, moves the progress bar, and collects warnings.

    losses: values of the last forward pass. routing: `LayerStatistics` by layer of the last forward pass, or None for a
    dense model.
    """

    def __init__(
        self,
        log: Path,
        *,
        title: str,
        losses: Callable[[], Mapping[str, float]],
        routing: Callable[[], Mapping[int, LayerStatistics]] | None = None,
        watch: TernaryWatch | None = None,
        board: Any = None,
    ) -> None:
        self._log, self._title, self._losses = log, title, losses
        self._routing, self._watch, self._board = routing, watch, board
        self._window: list[Mapping[str, float]] = []
        self._starved_rows = self._still_rows = 0
        self._progress: Progress | None = None
        self._task: Any = None
        self._start = 0.0
        self.rows: list[dict[str, float]] = []
        self.warnings: list[str] = []

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        kept = [row for row in read_rows(self._log) if row["step"] <= state.global_step]
        self.rows = kept
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._start = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)
        self._progress = progress_bar(self._title)
        self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step, note="")
        self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._window.append(dict(self._losses()))
        note = f"loss {self._window[-1]['loss']:.3f}"
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step, note=note)
        if state.global_step % args.logging_steps and state.global_step != state.max_steps:
            return
        row: dict[str, float] = {"step": state.global_step}
        for key in self._window[-1]:
            row[key] = sum(step[key] for step in self._window) / len(self._window)
        self._window.clear()
        row["lr"] = float(kwargs["lr_scheduler"].get_last_lr()[-1])
        row["seconds"] = round(time.monotonic() - self._start, 3)
        row |= self._mixture()
        self.rows.append(row)
        with self._log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for key, value in row.items():
                if key != "step":
                    self._board.add_scalar(key, value, state.global_step)

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _mixture(self) -> dict[str, float]:
        """The mixture's part of a row, and what it warns of."""
        if self._routing is None:
            return {}
        layers = self._routing()
        loads_LE = torch.tensor([layer.load for layer in layers.values()])
        fair = 1 / loads_LE.shape[1]
        row = {
            "load_max": float(loads_LE.max()),
            "load_min": float(loads_LE.min()),
            "router_entropy": sum(layer.entropy for layer in layers.values()) / len(layers),
            "mean_gate": sum(layer.mean_gate for layer in layers.values()) / len(layers),
        }
        starved = sorted(i for i, load_E in zip(layers, loads_LE, strict=True) if load_E.min() < COLLAPSE_SHARE * fair)
        self._starved_rows = self._starved_rows + 1 if starved else 0
        if self._starved_rows == 3:
            self._warn(
                f"experts collapse: in layers {starved} one expert gets under {COLLAPSE_SHARE * fair:.1%} of "
                "the tokens; raise balance_coefficient or the batch size"
            )
        if self._watch is not None:
            row |= self._watch.look()
            self._still_rows = self._still_rows + 1 if row.get("flips") == 0 else 0
            if self._still_rows == 3:
                self._warn("no ternary weight has changed for three rows; raise learning_rate")
        return row

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        if self._progress is not None:
            self._progress.console.print(f"[yellow]warning:[/] {text}")

    def judge(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """Warns of forgetting (held-out loss or text perplexity up) and of underfitting (loss not down)."""
        for key, name in (("text_perplexity", "text perplexity"), ("held_out_loss", "held-out loss")):
            if key in before and after[key] > FORGETTING_RATIO * before[key]:
                self._warn(
                    f"forgetting: {name} went from {before[key]:.2f} to {after[key]:.2f}; lower learning_rate, "
                    "or train fewer parts"
                )
        if self._routing is not None and len(self.rows) >= 4:
            quarter = max(1, len(self.rows) // 4)
            first = sum(row["loss"] for row in self.rows[:quarter]) / quarter
            last = sum(row["loss"] for row in self.rows[-quarter:]) / quarter
            if last > (1 - UNDERFIT_MARGIN) * first:
                self._warn(
                    f"underfitting: the experts' loss went from {first:.3f} to {last:.3f}; raise learning_rate "
                    "(another group's ternary training found 1e-4 best) or train longer"
                )


def read_rows(log: Path) -> list[dict[str, float]]:
    """Rows of a `losses.jsonl`; a last line that a kill cut short is dropped."""
    rows = []
    for line in log.read_text().splitlines() if log.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


@torch.no_grad()
def text_perplexity(model: nn.Module, tokenizer: Any, text: str, *, windows: int = 4, length: int = 256) -> float:
    """exp of the mean next-token loss over the first `windows` x `length` tokens of `text`, no picture, eval mode."""
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False)[: windows * length])
    ids_WT = ids[: len(ids) // length * length].view(-1, length).to(next(model.parameters()).device)
    was_training = model.training
    model.eval()
    loss = model(input_ids=ids_WT, labels=ids_WT, use_cache=False).loss
    model.train(was_training)
    return float(loss.exp())
