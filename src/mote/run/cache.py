"""Keys and values of sequences, in blocks that sequences share, and the prefixes that are kept for the next question.

A block holds MOTE_KV_TOKENS tokens of all layers in one allocation. Blocks are counted: a fork shares the full ones,
which are never written again, and copies the last one, so that both sides may go on. A token's keys and values depend
on the tokens before it only; a sequence may hence start from the longest prefix that any kept one has in common with
it, and its bits are those of a fresh start.
"""

from collections import OrderedDict
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mote.errors import EngineError
from mote.kernels.abi import KV_TOKENS

KEPT_BYTES = 512 << 20
"""Of keys and values of kept prefixes."""
FEWEST = 8
"""Tokens in common that are worth a fork, which copies a block: decoding them would read all weights."""

Keys = NDArray[np.int64]
"""One number for each token: its id, or for a picture's token a negative number made of the picture's hash and its
place. Equal keys mean equal inputs."""


class Block:
    """Memory of one block and the number of sequences that hold it."""

    def __init__(self, size: int) -> None:
        self.memory = np.empty(size, dtype=np.uint8)
        self.address = int(self.memory.ctypes.data)
        self.holders = 1


class Pool:
    """Gives out blocks and takes them back. size: bytes of a block. spare: bytes that it holds on to for the next."""

    def __init__(self, size: int, spare: int = 64 << 20) -> None:
        self.size = size
        self.in_use = 0
        self._spare = spare // size
        self._free: list[Block] = []

    def take(self) -> Block:
        """A block of undefined content, held once."""
        block = self._free.pop() if self._free else Block(self.size)
        block.holders = 1
        self.in_use += 1
        return block

    def share(self, block: Block) -> Block:
        """The same block, held once more."""
        block.holders += 1
        return block

    def copy(self, block: Block) -> Block:
        """A block of the same content."""
        taken = self.take()
        taken.memory[:] = block.memory
        return taken

    def give_back(self, block: Block) -> None:
        """Drops one hold; a block that nobody holds is used again."""
        block.holders -= 1
        if block.holders == 0:
            self.in_use -= 1
            if len(self._free) < self._spare:
                self._free.append(block)


@dataclass(frozen=True)
class Piece:
    """Tokens waiting to be decoded: their keys, and for a picture's tokens their embeddings fp32 [n, H]."""

    keys: Keys
    features: NDArray[np.float32] | None = None

    def cut(self, start: int, stop: int) -> "Piece":
        """The tokens from `start` to `stop`."""
        return Piece(self.keys[start:stop], None if self.features is None else self.features[start:stop])


@dataclass(eq=False)
class Sequence:
    """One text: the tokens whose keys and values are in its blocks, and those that wait. Made by `Engine.sequence`."""

    pool: Pool
    blocks: list[Block] = field(default_factory=list)
    keys: Keys = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    waiting: list[Piece] = field(default_factory=list)
    freed: bool = False

    @property
    def length(self) -> int:
        """Tokens whose keys and values are there."""
        return int(self.keys.size)

    @property
    def num_waiting(self) -> int:
        """Tokens that the next step decodes."""
        return sum(piece.keys.size for piece in self.waiting)

    def append(self, *tokens: int) -> None:
        """Adds tokens for the next `Engine.step`."""
        self.check()
        self.waiting.append(Piece(np.array(tokens, dtype=np.int64)))

    def check(self) -> None:
        """Raises EngineError after `free`."""
        if self.freed:
            raise EngineError("this sequence was freed; start another with Engine.sequence()")

    def reserve(self, tokens: int) -> None:
        """Takes blocks for `tokens` more than there are."""
        while len(self.blocks) < _blocks(self.length + tokens):
            self.blocks.append(self.pool.take())

    def abandon(self) -> None:
        """Forgets what waits, and gives back blocks that were taken for it: the sequence ends with what is decoded."""
        self.waiting = []
        while len(self.blocks) > _blocks(self.length):
            self.pool.give_back(self.blocks.pop())

    def advance(self, tokens: int) -> None:
        """The first `tokens` waiting ones are decoded."""
        done = [self.keys]
        while tokens:
            piece = self.waiting.pop(0)
            if piece.keys.size > tokens:
                self.waiting.insert(0, piece.cut(tokens, piece.keys.size))
                piece = piece.cut(0, tokens)
            done.append(piece.keys)
            tokens -= piece.keys.size
        self.keys = np.concatenate(done)

    def fork(self, tokens: int | None = None) -> "Sequence":
        """A sequence that starts with the first `tokens` decoded ones of this (default: all); nothing waits in it.

        Raises EngineError for more than are decoded.
        """
        self.check()
        count = self.length if tokens is None else tokens
        if not 0 <= count <= self.length:
            raise EngineError(f"fork of {count} tokens from a sequence of {self.length}; take what is decoded, or step")
        full = count // KV_TOKENS
        blocks = [self.pool.share(block) for block in self.blocks[:full]]
        if count % KV_TOKENS:
            blocks.append(self.pool.copy(self.blocks[full]))
        return Sequence(self.pool, blocks, self.keys[:count].copy())

    def free(self) -> None:
        """Gives the blocks back; again is harmless."""
        for block in self.blocks:
            self.pool.give_back(block)
        self.blocks, self.waiting, self.freed = [], [], True


class Prefixes:
    """The sequences that were decoded last, to start others from. entries, tokens: how much is kept at most, in whole
    blocks; blocks of `size` bytes that would take more than KEPT_BYTES are fewer."""

    def __init__(self, size: int, entries: int = 8, tokens: int = 8192) -> None:
        self._entries = entries
        self._most = min(tokens // KV_TOKENS, KEPT_BYTES // size)
        self._kept: OrderedDict[bytes, Sequence] = OrderedDict()

    def longest(self, keys: Keys) -> Sequence | None:
        """A fork of what is common with a kept sequence, all but the last token at most; None below FEWEST tokens."""
        best, chosen = FEWEST - 1, None
        for name, kept in self._kept.items():
            common = _common(kept.keys, keys[:-1])
            if common > best:
                best, chosen = common, name
        if chosen is None:
            return None
        self._kept.move_to_end(chosen)
        return self._kept[chosen].fork(best)

    def keep(self, sequence: Sequence) -> None:
        """Remembers what is decoded of `sequence`, in the place of what it continues; nothing that is too short to be
        of use, or so long that all else would have to go."""
        if sequence.length < FEWEST or _blocks(sequence.length) > self._most:
            return
        for name, kept in list(self._kept.items()):
            common = _common(kept.keys, sequence.keys)
            if common == sequence.length:
                self._kept.move_to_end(name)
                return
            if common == kept.length:
                self._kept.pop(name).free()
        self._kept[sequence.keys.tobytes()] = sequence.fork()
        while len(self._kept) > self._entries or sum(len(kept.blocks) for kept in self._kept.values()) > self._most:
            self._kept.popitem(last=False)[1].free()

    def clear(self) -> None:
        """Forgets all."""
        while self._kept:
            self._kept.popitem()[1].free()


def picture_keys(digest: str, count: int) -> Keys:
    """Keys of a picture's tokens: negative, of the first 47 bits of its hash and the place. digest: hex."""
    return -((np.int64(int(digest[:12], 16) >> 1) << np.int64(15)) + np.arange(count, dtype=np.int64)) - 1


def _blocks(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // KV_TOKENS)


def _common(a: Listed[int] | Keys, b: Listed[int] | Keys) -> int:
    """How many first numbers are equal."""
    length = min(len(a), len(b))
    differs = np.flatnonzero(np.asarray(a[:length]) != np.asarray(b[:length]))
    return int(differs[0]) if differs.size else length
