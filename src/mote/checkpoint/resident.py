"""Memory that a model takes while it answers: what the planner promises, `mote info` says and the engine warns by.

The weights of the language model are mapped from the files, so their pages are the system's: it may drop and read them
again, which is slow, but is not running out of memory. Everything else is the process's own:

    own = libraries + copies + cache + pictures + working

libraries: interpreter, torch, transformers and tokenizer, measured (`LIBRARY_BYTES`). copies: what the engine turns
into fp32: norms, biases, routers. cache: keys and values of `context` tokens, in whole blocks. pictures: vision tower
and connector as torch holds them, and the kept embeddings. working: rows of one native call of at most `CHUNK` tokens.

Nothing here imports torch. The sums are the engine's: tests compare each with what it allocates.
"""

import contextlib
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mote.checkpoint.accounting import component_of
from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.header import PlannedTensor, TensorInfo
from mote.checkpoint.layout import decoder_prefixes

LIBRARY_BYTES = 400 << 20
"""Resident bytes of the interpreter and of all that answering imports, with processor and tokenizer, before a weight is
read. Measured with Python 3.11, torch 2.13 (CPU) and transformers 5.23 on x86-64: `python -m benchmarks.libraries`
repeats it. 225 MiB of it are the imports of the engine; a tokenizer of 150,000 tokens adds some tens of MiB."""
KV_TOKENS = 32
"""Tokens of one block of the cache; MOTE_KV_TOKENS of csrc/mote.h."""
CONTEXT = 2048
"""Tokens of a text unless another number is asked for, where the model has as many positions."""
CHUNK = 256
"""Tokens of one native call; `mote.run.decoding.CHUNK`."""
NUMBER_BYTES = {"bf16": 2, "f32": 4}
SMALLER = "take a smaller plan (mote plan --budget device)"
"""What to do where a model does not fit."""

Tensors = Iterable[TensorInfo | PlannedTensor]


@dataclass(frozen=True, kw_only=True)
class Resident:
    """Bytes by what they are for; see the module. weights: the mapped ones of the language model, each page touched."""

    weights: int
    copies: int
    cache: int
    pictures: int
    working: int
    libraries: int = LIBRARY_BYTES

    @property
    def own(self) -> int:
        """Bytes that the system cannot drop and read again."""
        return self.total - self.weights

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, int]:
        """JSON-able form, with the sums."""
        return {**asdict(self), "own": self.own, "total": self.total}


def resident(
    tensors: Tensors,
    mote: MoteConfig | None,
    *,
    context: int,
    image_tokens: int = 0,
    kv: str = "bf16",
    tower_bytes_per_weight: int = 2,
    eyes: bool = True,
) -> Resident:
    """Memory of a model in the engine.

    context: tokens whose keys and values are kept, those of pictures among them. image_tokens: of all pictures in it.
    kv: numbers of the cache, "bf16" or "f32". tower_bytes_per_weight: 4 on a processor without bf16 arithmetic, where
    the vision tower runs in fp32. eyes: whether a picture is shown; without one tower and connector are never loaded.
    """
    found = list(tensors)
    weights = copies = pictures = 0
    for tensor in found:
        component = component_of(tensor.name)
        if component == "vision_tower":
            packed = tensor.name.endswith((".packed", ".scale", ".zero"))
            pictures += (tensor.nbytes if packed else tower_bytes_per_weight * _numel(tensor)) if eyes else 0
        elif component == "connector":
            pictures += 4 * _numel(tensor) if eyes else 0
        elif component in ("norms", "routers") or tensor.name.endswith((".bias", "_norm.weight")):
            copies += 4 * _numel(tensor)
        else:
            weights += tensor.nbytes
    shape = _shape(found, mote)
    hidden, query, key_value, ffn = shape
    routed = 1 + (0 if mote is None else mote.top_k)
    working = 4 * CHUNK * (6 * hidden + 2 * query + 2 * key_value + 2 * ffn * routed)
    return Resident(
        weights=weights,
        copies=copies,
        cache=cache_bytes(found, mote, context, kv),
        pictures=pictures + 4 * image_tokens * hidden if eyes else 0,
        working=working,
    )


def loaded(tensors: Tensors, mote: MoteConfig | None, *, widened: bool = False) -> Resident:
    """Memory of a model in transformers, which copies every tensor from the files, up-cycled experts to fp32; the cache
    and activations come on top. widened: to fp32 go 16-bit floats too (`mote.model.precision.widen`)."""
    upcycled = mote is not None and mote.state == "upcycled"

    def in_fp32(tensor: TensorInfo | PlannedTensor) -> bool:
        return (upcycled and ".mlp.experts." in tensor.name) or (widened and tensor.dtype in ("BF16", "F16"))

    copies = sum(4 * _numel(tensor) if in_fp32(tensor) else tensor.nbytes for tensor in tensors)
    return Resident(weights=0, copies=copies, cache=0, pictures=0, working=0)


def cache_bytes(tensors: Tensors, mote: MoteConfig | None, context: int, kv: str = "bf16") -> int:
    """Bytes of keys and values of `context` tokens, in whole blocks of `KV_TOKENS`."""
    found = list(tensors)
    layers = len(decoder_prefixes(tensor.name for tensor in found))
    blocks = -(-context // KV_TOKENS)
    return 2 * layers * _shape(found, mote)[2] * NUMBER_BYTES[kv] * blocks * KV_TOKENS


def token_bytes(tensors: Tensors, mote: MoteConfig | None) -> int:
    """Bytes of weights that decoding one token reads: all of the language model's but the experts that it is not sent
    to, and the embedding, of which it reads one row, unless that is the head too."""
    found = list(tensors)
    untied = any(".lm_head." in f".{tensor.name}" for tensor in found)
    share = 1.0 if mote is None or not mote.num_experts else mote.top_k / mote.num_experts
    read = 0.0
    for tensor in found:
        component = component_of(tensor.name)
        if component in ("vision_tower", "connector") or (untied and "embed_tokens." in tensor.name):
            continue
        read += tensor.nbytes * (share if ".mlp.experts." in tensor.name else 1.0)
    return math.ceil(read)


def available_memory() -> int | None:
    """Bytes that this process may still take without swapping: the system's, or of its control group if that is less;
    None where neither can be told."""
    system = _meminfo("MemAvailable")
    group = _group_available()
    known = [count for count in (system, group) if count is not None]
    return min(known) if known else None


def total_memory() -> int | None:
    """Bytes of memory of this machine, or the limit of the control group if that is less; None if unknown."""
    known = [count for count in (_meminfo("MemTotal"), _number("/sys/fs/cgroup/memory.max")) if count is not None]
    if not known:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(known) if known else None


def memory_warning(needs: Resident, available: int | None, where: str, advice: str = SMALLER) -> str:
    """One line on what happens when `needs` do not fit in `available` bytes, or "" when they do, or nobody knows."""
    if available is None or needs.total <= available:
        return ""
    gib = 1 << 30
    start = f"{where}: takes about {needs.total / gib:.2f} GiB more, {available / gib:.2f} GiB are free"
    if needs.own > available:
        return (
            f"{start}; {needs.own / gib:.2f} GiB of it cannot be dropped and read again from the files, so the system "
            f"may end this process: free memory, or {advice}"
        )
    return (
        f"{start}; weights are mapped, so it runs, but pages will be read from disk again and again: expect the disk's "
        f"speed, or {advice}"
    )


def warn_of_memory(needs: Resident, where: str, *, stacklevel: int = 3, advice: str = SMALLER) -> None:
    """Warns, in one line, where `needs` do not fit in what is free now, the libraries aside, which are loaded already.

    Nothing is refused, since other programs may go, and mapped weights are the system's to drop.
    """
    if said := memory_warning(replace(needs, libraries=0), available_memory(), where, advice):
        warnings.warn(said, stacklevel=stacklevel)


def _numel(tensor: TensorInfo | PlannedTensor) -> int:
    return math.prod(tensor.shape)


def _shape(tensors: list[TensorInfo | PlannedTensor], mote: MoteConfig | None) -> tuple[int, int, int, int]:
    """Hidden size, widths of queries and of keys, and of the feed-forward network, by the tensors or the contract."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    prefix = next(iter(decoder_prefixes(shapes).values()), "")
    hidden, query = _stated(mote, "hidden_size"), _stated(mote, "query_size")
    key_value, ffn = _stated(mote, "key_value_size"), _stated(mote, "ffn_size")
    norm = shapes.get(f"{prefix}input_layernorm.weight")
    gate = shapes.get(f"{prefix}mlp.gate_proj.weight") or shapes.get(f"{prefix}mlp.experts.gate_proj", ())[1:]
    queries, keys = (shapes.get(f"{prefix}self_attn.{name}_proj.weight") for name in "qk")
    return (
        hidden or (norm[0] if norm else gate[1] if gate else 0),
        query or (queries[0] if queries else 0),
        key_value or (keys[0] if keys else 0),
        ffn or (gate[0] if gate else 0),
    )


def _stated(mote: MoteConfig | None, name: str) -> int:
    return 0 if mote is None else int(getattr(mote, name))


def _meminfo(key: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def _group_available() -> int | None:
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is None or used is None:
        return None
    cached = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines():
            if line.startswith(("inactive_file ", "active_file ")):
                cached += int(line.split()[1])
    return max(0, limit - used + cached)


def _number(path: str) -> int | None:
    """The number in a file of the system; None for "max", or without the file."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path(path).read_text())
    return None
