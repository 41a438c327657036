"""Our engine measured by `benchmarks.worker`, on a checkpoint without a tokenizer: prefill and step of ids."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.worker import serve
from mote.checkpoint.resident import KV_TOKENS
from mote.checkpoint.shards import Checkpoint
from mote.kernels.abi import PARTS
from mote.kernels.library import info
from mote.model.guard import guarded_class
from mote.model.opening import open_config
from mote.run.decoding import Decoding
from mote.run.weights import Weights

# What reading a packed config.json imports of transformers, so that `open_s` and `peak_bytes` leave imports out.
guarded_class("qwen2")


class Mote:
    """A checkpoint with one sequence."""

    def __init__(self, a: argparse.Namespace) -> None:
        torch.set_num_threads(a.threads)
        checkpoint = Checkpoint.open(a.model)
        weights = Weights(checkpoint, open_config(checkpoint))
        self._engine = Decoding(weights, positions=a.context, threads=a.threads)
        self._sequence = self._engine.sequence()
        self._longest = self._decoded = 0

    def prefill(self, ids: Sequence[int]) -> int:
        # Nothing of an earlier prompt may be used again: that is measured elsewhere.
        self._engine.prefixes.clear()
        self._engine.free(self._sequence)
        self._sequence = self._engine.sequence()
        self._longest = max(self._longest, len(ids))
        best = int(self._engine.prefill(self._sequence, ids).argmax())
        self._engine.nanoseconds[:] = self._decoded = 0  # what is told is of the steps after the last prompt
        return best

    def step(self, token: int) -> int:
        self._sequence.append(token)
        self._decoded += 1
        return int(self._engine.step([self._sequence])[0].argmax())

    def facts(self) -> dict[str, Any]:
        blocks = self._engine.pool.size * -(-self._longest // KV_TOKENS)
        nanoseconds = dict(zip(PARTS, map(int, self._engine.nanoseconds), strict=True))
        return {
            "weight_bytes": self._engine.weights.bytes,
            "cache_bytes": blocks,
            "isa": info()["isa"],
            "nanoseconds": nanoseconds,
            "decoded": self._decoded,
        }


if __name__ == "__main__":
    serve(Mote)
