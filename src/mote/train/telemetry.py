"""What a training run records, and the failure signatures it watches for.

A row of `losses.jsonl` (and the same values for TensorBoard): loss, balance loss per layer (1.0 is perfect; both means
over the steps since the last row), learning rate, seconds; for a mixture also the largest load of an expert and the
smallest, router entropy, mean gate, the share of ternary weights that are zero, and the share that changed its value
since the last row, measured on every `ROW_STRIDE`-th row of every matrix.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainingArguments

from mote.checkpoint.atomic import write_error, write_file
from mote.errors import TrainingError
from mote.model.routing import LayerStatistics

LOSSES = "losses.jsonl"
STATE, WATCH = "telemetry.json", "ternary.safetensors"
"""Files of a snapshot: what this module needs to go on."""
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
        console=Console(stderr=True),  # stdout is for results
    )


class TernaryWatch:
    """Share of zeros, and of values that changed since the last look, over sampled rows of ternary weights.

    quantized: gives, by parameter name, integer weights [E, N, K] in {-1, 0, 1} as they are in the forward pass.
    last: what the last look saw, int8 by name; a snapshot keeps it.
    """

    def __init__(self, quantized: Callable[[], Mapping[str, Tensor]]) -> None:
        self._quantized = quantized
        self.last: dict[str, Tensor] = {}

    def look(self) -> dict[str, float]:
        """{"zeros": share, "flips": share}; no "flips" at the first look, nothing without ternary weights."""
        sampled = {name: q[:, ::ROW_STRIDE].to(torch.int8, copy=True) for name, q in self._quantized().items()}
        count = sum(q.numel() for q in sampled.values())
        if not count:
            return {}
        row = {"zeros": sum(int((q == 0).sum()) for q in sampled.values()) / count}
        if self.last:
            row["flips"] = sum(int((q != self.last[name]).sum()) for name, q in sampled.items()) / count
        self.last = sampled
        return row


class Telemetry(TrainerCallback):
    """Writes a row every `args.logging_steps` steps, moves the progress bar, and collects warnings.

    logs: folder of `losses.jsonl` and `tensorboard/`. losses: values of the last optimiser step. routing:
    `LayerStatistics` by layer of the last forward pass, or None for a dense model. All that a resumed run needs to go
    on with the very same rows is written into each snapshot and read by `restore`.
    """

    def __init__(
        self,
        logs: Path,
        *,
        title: str,
        losses: Callable[[], Mapping[str, float]],
        routing: Callable[[], Mapping[int, LayerStatistics]] | None = None,
        watch: TernaryWatch | None = None,
    ) -> None:
        self._logs, self._title, self._losses = logs, title, losses
        self._routing, self._watch = routing, watch
        self._window: list[dict[str, float]] = []
        self._starved_rows = self._still_rows = 0
        self._rate = self._start = self._seconds = 0.0
        self._progress: Progress | None = None
        self._task: Any = None
        self._board: Any = None
        self.before: dict[str, float] = {}
        self.rows: list[dict[str, float]] = []
        self.warnings: list[str] = []

    def restore(self, snapshot: Path) -> None:
        """Go on from what a snapshot holds. Raises TrainingError if that is damaged."""
        try:
            state = json.loads((snapshot / STATE).read_text(encoding="utf-8"))
            self.before, self.rows, self.warnings = state["before"], state["rows"], state["warnings"]
            self._window, self._seconds = state["window"], state["seconds"]
            self._starved_rows, self._still_rows = state["starved_rows"], state["still_rows"]
            if self._watch is not None and (snapshot / WATCH).is_file():
                self._watch.last = load_file(snapshot / WATCH)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise TrainingError(f"{snapshot}: damaged ({error}); delete it to start anew") from None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        self._write_rows("w", self.rows)
        # Points that an interrupted run logged after its last snapshot are not shown.
        self._board = SummaryWriter(str(self._logs / "tensorboard"), purge_step=state.global_step + 1)
        if self._watch is not None and not self._watch.last:
            self._watch.look()
        self._start = time.monotonic() - self._seconds
        self._progress = progress_bar(self._title)
        self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step, note="")
        self._progress.start()

    def on_pre_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._rate = float(kwargs["lr_scheduler"].get_last_lr()[-1])

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self._window.append(dict(self._losses()))
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step, note=f"loss {self._window[-1]['loss']:.3f}")
        if state.global_step % args.logging_steps and state.global_step != state.max_steps:
            return
        row: dict[str, float] = {"step": state.global_step}
        for key in self._window[-1]:
            row[key] = sum(step[key] for step in self._window) / len(self._window)
        self._window.clear()
        row["lr"] = self._rate
        row["seconds"] = round(time.monotonic() - self._start, 3)
        row |= self._mixture()
        self.rows.append(row)
        self._write_rows("a", [row])
        for key, value in row.items():
            if key != "step":
                self._board.add_scalar(key, value, state.global_step)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        kept = {
            "before": self.before,
            "rows": self.rows,
            "warnings": self.warnings,
            "window": self._window,
            "seconds": time.monotonic() - self._start,
            "starved_rows": self._starved_rows,
            "still_rows": self._still_rows,
        }
        write_file(folder / STATE, json.dumps(kept))
        if self._watch is not None and self._watch.last:
            write_file(folder / WATCH, save(self._watch.last))

    def close(self) -> None:
        """Ends the progress bar and completes TensorBoard's file; also after a failure, and any number of times."""
        if self._progress is not None:
            self._progress.stop()
        if self._board is not None:
            self._board.close()
        self._progress = self._board = None

    def _write_rows(self, mode: str, rows: Sequence[Mapping[str, float]]) -> None:
        path = self._logs / LOSSES
        try:
            with path.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        except OSError as error:
            raise write_error(path, error) from None

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
