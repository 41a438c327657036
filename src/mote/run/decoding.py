"""Sequences of tokens through the native decoder: prefill, steps of a batch, forks, cancellation, routes.

Rows of logits are bit-equal whatever else is in a batch, however a text is cut into calls, and for any number of
threads. One thread uses an engine; only `cancel` may come from another.

Shapes: T tokens of a call, V vocabulary, H hidden size, L layers, k experts of a token.
"""

import ctypes
import os
import time
from collections.abc import Iterator
from collections.abc import Sequence as Listed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mote.errors import CancelledError, EngineError, UnsupportedModelError
from mote.kernels import decoder as native
from mote.kernels.abi import PARTS
from mote.run.cache import Piece, Pool, Prefixes, Sequence, picture_keys
from mote.run.picture import Picture, Sight
from mote.run.weights import Weights

Floats = NDArray[np.float32]
CHUNK = 256
"""Tokens of one native call: bounds the memory of a long prompt, and how long a cancellation takes."""


@dataclass(frozen=True, eq=False)
class Routes:
    """The routes of one native call's tokens of one sequence.

    start: place of the first of these T tokens in the sequence. expert int32 [L, T, k], -1 in a layer without a
    mixture; gate fp32 [L, T, k], the probabilities (renormalised where the model says so).
    """

    sequence: Sequence
    start: int
    expert: NDArray[np.int32]
    gate: Floats


class Decoding:
    """A decoder with its caches, the lower half of `Engine`.

    sight: shows pictures, or None for a model without eyes. image_token_id: the token that stands for one of a
    picture's embeddings. positions: the longest text. threads: of the native pool; 0 means MOTE_NUM_THREADS, or all
    cores. Counters, all since the start: `decoded` tokens through the decoder, `reused` tokens taken from kept
    prefixes, `nanoseconds` by part of the forward pass, `native_seconds` inside of native calls.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        positions: int,
        sight: Sight | None = None,
        image_token_id: int | None = None,
        threads: int = 0,
        chunk: int = CHUNK,
    ) -> None:
        self.weights = weights
        self.positions = positions
        self.sight = sight
        self.image_token_id = image_token_id
        self.threads = threads or _threads_by_default()
        self.chunk = chunk
        self.pool = Pool(native.kv_block_bytes(weights.decoder))
        self.prefixes = Prefixes(self.pool.size)
        self.decoded = self.reused = 0
        self.native_seconds = 0.0
        self.nanoseconds = np.zeros(len(PARTS), dtype=np.int64)
        self._cancel = ctypes.c_int32(0)
        self._traces: list[list[Routes]] = []

    @property
    def vocabulary(self) -> int:
        """V, the number of logits of a token."""
        return int(self.weights.decoder.head.rows)

    def sequence(self) -> Sequence:
        """A new, empty sequence."""
        return Sequence(self.pool)

    def prefill(
        self, sequence: Sequence, ids: Listed[int], images: Listed[str | PathLike[str] | Picture] = ()
    ) -> Floats:
        """Adds `ids` to `sequence` and returns the logits fp32 [V] after the last of them.

        images: as many as there are runs of the image token in ids, each run as long as the picture's embeddings; files
        or what `Engine.picture` gave. What the text has in common with one that was prefilled before is not decoded
        again. Raises EngineError (too long, freed, pictures and image tokens that do not match), CancelledError; then
        the sequence ends with what was decoded, and nothing waits in it.
        """
        self.add(sequence, ids, images)
        try:
            logits = self.step([sequence])[0]
        except BaseException:
            sequence.abandon()
            raise
        self.prefixes.keep(sequence)
        return logits

    def step(self, sequences: Listed[Sequence]) -> Floats:
        """Decodes what waits in each sequence (`Sequence.append`): logits fp32 [sequences, V] after its last token.

        After CancelledError what was not decoded still waits, so that the same step may be taken again.
        """
        return self._decode(sequences, [1] * len(sequences))

    def forward(self, sequences: Listed[Sequence], keep: Listed[int]) -> list[Floats]:
        """As `step`, with the logits [keep, V] of the last `keep` tokens of each sequence."""
        logits, stops = self._decode(sequences, keep), np.cumsum([0, *keep])
        return [logits[start:stop] for start, stop in pairwise(stops)]

    def fork(self, sequence: Sequence) -> Sequence:
        """A second sequence with the same past; both may go on, and each is freed."""
        return sequence.fork()

    def free(self, sequence: Sequence) -> None:
        """Gives a sequence's memory back; it cannot be used any more."""
        sequence.free()

    def cancel(self) -> None:
        """Ends the call in progress, or else the next one, with CancelledError; for any thread.

        A call that is past its last layer returns, and the one after it ends. A question takes a cancellation that came
        too late to end it with it (`Engine.prefilled`).
        """
        self._cancel.value = 1

    def picture(self, path: str | PathLike[str]) -> Picture:
        """A picture as `prefill` takes it. Raises DataError (no picture), UnsupportedModelError (no eyes)."""
        if self.sight is None:
            raise UnsupportedModelError("this checkpoint has no vision tower; ask it without a picture")
        return self.sight(Path(path))

    @contextmanager
    def trace(self) -> Iterator[list[Routes]]:
        """Collects the routes of all tokens that are decoded inside: `with engine.trace() as routes: ...`."""
        collected: list[Routes] = []
        self._traces.append(collected)
        try:
            yield collected
        finally:
            self._traces = [trace for trace in self._traces if trace is not collected]  # equal ones are others

    def add(self, sequence: Sequence, ids: Listed[int], images: Listed[str | PathLike[str] | Picture] = ()) -> None:
        """What `prefill` does before it decodes: `ids` wait in `sequence`, behind a kept prefix if it was empty."""
        sequence.check()
        self._check_length(sequence, len(ids))
        pieces = self._pieces(ids, [i if isinstance(i, Picture) else self.picture(i) for i in images])
        fresh = sequence.length == 0 and not sequence.waiting
        sequence.waiting += pieces
        if not fresh:
            return
        keys = np.concatenate([piece.keys for piece in pieces]) if pieces else np.empty(0, np.int64)
        found = self.prefixes.longest(keys)
        if found is not None:
            sequence.blocks = found.blocks
            sequence.advance(found.length)
            self.reused += found.length

    def _pieces(self, ids: Listed[int], pictures: list[Picture]) -> list[Piece]:
        """Tokens as runs of text and pictures."""
        keys = np.asarray(ids, dtype=np.int64).reshape(-1)
        if keys.size and not (keys.min() >= 0 and keys.max() < self.weights.embedding.rows):
            raise EngineError(f"token {keys.max() if keys.min() >= 0 else keys.min()} is not in the vocabulary")
        seen = keys == (-1 if self.image_token_id is None else self.image_token_id)
        bounds = np.flatnonzero(np.diff(seen, prepend=~seen[:1], append=~seen[-1:]))
        runs = [(int(a), int(b)) for a, b in pairwise(bounds)]
        slots = [b - a for a, b in runs if seen[a]]
        if slots != [len(picture.embeddings) for picture in pictures]:
            sizes = [len(picture.embeddings) for picture in pictures]
            raise EngineError(f"pictures of {sizes} embeddings for runs of {slots} image tokens; one run a picture")
        waiting = iter(pictures)
        return [self._shown(next(waiting)) if seen[a] else Piece(keys[a:b]) for a, b in runs]

    @staticmethod
    def _shown(picture: Picture) -> Piece:
        return Piece(picture_keys(picture.digest, len(picture.embeddings)), picture.embeddings)

    def _check(self, sequences: Listed[Sequence], keep: Listed[int]) -> None:
        if len(set(map(id, sequences))) != len(sequences):
            raise EngineError("a sequence stands twice in one step; fork it")
        for sequence, rows in zip(sequences, keep, strict=True):
            sequence.check()
            waiting = sequence.num_waiting
            if not waiting or rows > waiting:
                raise EngineError(
                    f"{waiting} tokens wait in a sequence, logits of {rows} are wanted; append some first"
                )
            self._check_length(sequence)

    def _check_length(self, sequence: Sequence, more: int = 0) -> None:
        """Raises EngineError when what a sequence holds, and `more` tokens, are more than the model has positions."""
        tokens = sequence.length + sequence.num_waiting + more
        if tokens > self.positions:
            raise EngineError(f"a text of {tokens} tokens, and the model has {self.positions} positions; shorten it")

    def _decode(self, sequences: Listed[Sequence], keep: Listed[int]) -> Floats:
        """Logits [sum of keep, V], sequence after sequence. Those of a single native call are not copied."""
        self._check(sequences, keep)
        found = []
        for call in self._calls(sequences):
            rows = self._rows(sequences, call, keep)
            logits = self._call([(sequences[i], count) for i, count in call], rows)
            found += [logits] if rows else []
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty((0, self.vocabulary), np.float32)

    def _calls(self, sequences: Listed[Sequence]) -> Iterator[list[tuple[int, int]]]:
        """Native calls as (sequence, tokens): as many as fit a chunk, sequences in order."""
        call: list[tuple[int, int]] = []
        room = self.chunk
        for index, sequence in enumerate(sequences):
            left = sequence.num_waiting
            while left:
                count = min(left, room)
                call.append((index, count))
                left, room = left - count, room - count
                if not room:
                    yield call
                    call, room = [], self.chunk
        if call:
            yield call

    def _rows(self, sequences: Listed[Sequence], call: list[tuple[int, int]], keep: Listed[int]) -> list[int]:
        """Tokens of the call whose logits are wanted."""
        rows: list[int] = []
        start = 0
        for index, count in call:
            first = max(0, sequences[index].num_waiting - keep[index])  # waiting tokens before the kept ones
            rows += range(start + first, start + count)
            start += count
        return rows

    def _call(self, call: list[tuple[Sequence, int]], rows: list[int]) -> Floats:
        x = np.concatenate([self._embed(sequence, count) for sequence, count in call])
        shape = (int(self.weights.decoder.num_layers), len(x), self.weights.top_k)
        expert = np.full(shape, -1, dtype=np.int32) if self._traces else None
        gate = np.zeros(shape, dtype=np.float32) if self._traces else None
        for sequence, count in call:
            sequence.reserve(count)
        spans = [(s.length, count, [block.address for block in s.blocks]) for s, count in call]
        begun = time.perf_counter()
        try:
            logits = native.decode(
                *(self.weights.decoder, x, spans, np.array(rows, dtype=np.int64)),
                threads=self.threads,
                expert=expert,
                gate=gate,
                cancel=self._cancel,
                nanoseconds=self.nanoseconds,
            )
        except CancelledError:
            self._cancel.value = 0  # here alone: one that came after the last layer is for the next call
            raise
        finally:
            self.native_seconds += time.perf_counter() - begun
        self.decoded += len(x)
        place = 0
        for sequence, count in call:
            for collected in self._traces if expert is not None and gate is not None else ():
                part = slice(place, place + count)
                collected.append(Routes(sequence, sequence.length, expert[:, part], gate[:, part]))  # type: ignore[index]
            sequence.advance(count)
            place += count
        return logits

    def _embed(self, sequence: Sequence, count: int) -> Floats:
        """Embeddings fp32 [count, H] of the tokens that wait first."""
        parts = []
        for piece in sequence.waiting:
            if not count:
                break
            taken = piece.cut(0, min(count, piece.keys.size))
            found = taken.features
            parts.append(native.embedding_rows(self.weights.embedding, taken.keys) if found is None else found)
            count -= taken.keys.size
        return np.concatenate(parts)


def _threads_by_default() -> int:
    stated = os.environ.get("MOTE_NUM_THREADS", "").strip()
    if stated and not stated.isdecimal():
        raise EngineError(f"MOTE_NUM_THREADS={stated!r} is not a number of threads; set it to one, or unset it")
    return int(stated or 0) or len(os.sched_getaffinity(0))
