"""From what the processes measured to the rows of engine.json: who is compared with whom, in which unit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.peers import write_checkpoint, write_gguf
from benchmarks.report import Numbers, compare, summary
from benchmarks.worker import FIRST_PROMPT

OUR_TOWER, TOWER_TOKENS = "mote int8", 729
FOUR_BITS = ("Q4_0", "Q4_K_M")


@dataclass(frozen=True)
class Side:
    """An engine, "mote" or "llama.cpp", with a model."""

    engine: str
    model: write_checkpoint.Model | write_gguf.Model

    @property
    def name(self) -> str:
        """As tables and --only name it, such as "mote 4 base3" or "llama.cpp dense Q4_0"."""
        m = self.model
        experts = m.codec if isinstance(m, write_checkpoint.Model) else m.expert
        return f"{self.engine} {m.experts} {experts}" if m.experts else f"{self.engine} dense {m.linear}"


@dataclass(kw_only=True)
class Timed:
    """Raw measurements of one side, a process a round."""

    threads: int
    prefill: dict[int, list[float]] = field(default_factory=dict)
    decode: list[float] = field(default_factory=list)
    opened: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, result: Mapping[str, Any]) -> None:
        """One process's result (see worker.py). Tokens of one process count as one measurement: their mean."""
        for tokens, values in result["prefill_s"].items():
            self.prefill.setdefault(int(tokens), []).extend(int(tokens) / s for s in values)
        self.decode.append(len(result["decode_s"]) / sum(result["decode_s"]))
        self.opened.append(result["ttft_s"])
        self.resident.append(result["peak_bytes"])
        self.facts = result["facts"]


def rivals(side: Side, others: Sequence[Side]) -> list[Side]:
    """Whom the rows of one of our sides are compared with."""
    m = side.model
    found = []
    for other in others:
        o = other.model
        theirs = other.engine == "llama.cpp"
        if not m.experts:
            wanted = theirs and not o.experts and o.linear in FOUR_BITS and m.linear == "int4"
        elif o.experts:
            # The same model in llama.cpp; and our own with fewer experts, which should decode no faster.
            wanted = o.experts == m.experts if theirs else o.experts < m.experts and o.codec == m.codec  # type: ignore[union-attr]
        else:
            wanted = (theirs and o.linear in FOUR_BITS) or (not theirs and o.linear == "bf16")
        if wanted:
            found.append(other)
    return found


def rows_of(
    shape: str, timed: Mapping[Side, Timed], bandwidth: Sequence[float], towers: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """All rows of one shape and number of threads. bandwidth: bytes a second, of the same rounds. towers: seconds
    of each engine's vision tower, as `tower.py` names them."""
    found: list[dict[str, Any]] = []
    seeing: dict[str, float] = {}
    for name, times in towers.items():  # of each engine the precision that is fastest
        engine = name.split()[0]
        seeing[engine] = min(median(times), seeing.get(engine, math.inf))
    read = summary([b / 1e9 for b in bandwidth])
    for side, own in timed.items():
        if side.engine != "mote":
            continue
        base = _fields(shape, side, own)
        for peer in rivals(side, list(timed)):
            named: dict[str, Any] = {"peer_name": peer.name, "peer_precision": peer.model.precision}
            if isinstance(peer.model, write_checkpoint.Model):
                named |= {"peer_token_bytes": peer.model.token_bytes}
            pair = seeing[side.engine], seeing[peer.engine]
            found += [{**base, **named, **row} for row in _against(own, timed[peer], pair)]
        found += [{**base, **row} for row in _limits(side, own, read)]
    common = {key: found[0][key] for key in ("model_shape", "shape", "threads", "isa")}
    return [*found, *({**common, **row} for row in _towers(towers))]


def _towers(towers: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Our vision tower against the others, whose names are "<engine> <precision>"."""
    others, rows = dict(towers), []
    ours = summary(others.pop(OUR_TOWER))
    for name, times in others.items():
        engine, precision = name.split()
        named = {
            "format": "mote tower",
            "precision": "int8",
            "peer_name": f"{engine} tower {precision}",
            "peer_precision": precision,
        }
        speeds = compare(ours, summary(times), smaller_is_better=True)
        rows.append({"what": "tower", "tokens": TOWER_TOKENS, "unit": "s", **named, **speeds})
    return rows


def _fields(shape: str, side: Side, own: Timed) -> dict[str, Any]:
    m = side.model
    assert isinstance(m, write_checkpoint.Model)
    size = m.sizes
    return {
        "format": side.name,
        "model_shape": shape,
        "shape": {"H": size.hidden, "F": size.ffn, "L": size.layers, "E": m.experts},
        "threads": own.threads,
        "isa": own.facts.get("isa", ""),
        "precision": m.precision,
        "token_bytes": m.token_bytes,
        "ffn_bytes": m.ffn_bytes,
    }


def _against(own: Timed, peer: Timed, towers: tuple[float, float]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for tokens in own.prefill:
        speeds = compare(summary(own.prefill[tokens]), summary(peer.prefill[tokens]))
        rows.append({"what": "prefill", "tokens": tokens, "unit": "tokens/s", **speeds})
    longest = max(own.prefill)
    waits = [
        summary([tower + longest / rate for rate in side.prefill[longest]])
        for side, tower in zip((own, peer), towers, strict=True)
    ]
    seen = {"what": "ttft", "tokens": longest, "unit": "s"}
    seen |= {"tower_seconds": round(towers[0], 3), "peer_tower_seconds": round(towers[1], 3)}
    rows.append({**seen, **compare(*waits, smaller_is_better=True)})
    speeds = compare(summary(own.decode), summary(peer.decode))
    rows.append({"what": "decode", "tokens": 1, "unit": "tokens/s", **speeds})
    first = compare(summary(own.opened), summary(peer.opened), smaller_is_better=True)
    rows.append({"what": "open", "tokens": FIRST_PROMPT, "unit": "s", **first})
    memory = compare(_bytes(own.resident), _bytes(peer.resident), smaller_is_better=True)
    rows.append({"what": "resident", "tokens": max(own.prefill), "unit": "bytes", **memory})
    return rows


def _limits(side: Side, own: Timed, read: Numbers) -> list[dict[str, Any]]:
    """Our share of the read bandwidth, and memory against the bytes that must be there."""
    assert isinstance(side.model, write_checkpoint.Model)
    moved = summary([rate * side.model.token_bytes / 1e9 for rate in own.decode])
    needed = _bytes([own.facts["weight_bytes"] + own.facts["cache_bytes"]])
    parts = {name: count / own.facts["decoded"] for name, count in own.facts["nanoseconds"].items()}
    decode = {"what": "decode", "tokens": 1, "unit": "GB/s", "peer_name": "read bandwidth", **compare(moved, read)}
    return [
        {**decode, "nanoseconds_a_token": parts},
        {
            **{"what": "resident", "tokens": max(own.prefill), "unit": "bytes", "peer_name": "weights + cache"},
            **compare(_bytes(own.resident), needed, smaller_is_better=True),
        },
    ]


def _bytes(values: Sequence[int]) -> Numbers:
    """As `summary`, in whole bytes."""
    ordered = sorted(values)
    return {"median": ordered[len(ordered) // 2], "min": ordered[0], "max": ordered[-1], "n": len(ordered)}
