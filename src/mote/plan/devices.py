"""Devices to plan for: this machine as it is found, others by their data sheets (`data/devices.yaml`)."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mote.checkpoint.accounting import GIB
from mote.checkpoint.environment import processor_has_bf16, record_environment
from mote.checkpoint.resident import available_memory, total_memory
from mote.errors import PlanError
from mote.plan import known
from mote.plan.measure import Plan

THIS = "this"
_READ_BYTES = 1 << 27


@dataclass(frozen=True, kw_only=True)
class Device:
    """A machine that is to answer.

    memory: bytes of it. free: bytes of these that are left for us. bandwidth: bytes that it reads from memory a second,
    0 if unknown. bf16: whether its processor computes in bf16. note: where the figures come from.
    """

    name: str
    memory: int
    free: int
    bandwidth: float
    bf16: bool
    note: str

    def fits(self, plan: Plan) -> str:
        """ "yes"; "mapped" where the weights do not stay in memory all at once, but everything else does; or "no"."""
        if plan.resident.total <= self.free:
            return "yes"
        return "mapped" if plan.resident.own <= self.free else "no"

    def bound(self, plan: Plan) -> float:
        """Tokens a second at a full context if nothing but memory took time: bandwidth over what a token reads, 0 if
        unknown."""
        return self.bandwidth / plan.token_bytes

    def to_dict(self, plan: Plan | None = None) -> dict[str, Any]:
        """JSON-able form, with what it says of a plan."""
        plain: dict[str, Any] = {
            "name": self.name,
            "memory_bytes": self.memory,
            "free_bytes": self.free,
            "bandwidth_bytes_per_second": self.bandwidth,
            "bf16": self.bf16,
            "note": self.note,
        }
        if plan is None:
            return plain
        return {**plain, "fits": self.fits(plan), "decode_tokens_per_second_bound": self.bound(plan)}


def device(name: str) -> Device:
    """A device by name; "this" is measured, which takes a fraction of a second. Raises PlanError with the names."""
    if name == THIS:
        return _this()
    if name not in known.table("devices"):
        hint = known.suggestion(name, [THIS, *known.table("devices")])
        raise PlanError(f"device {name!r} is unknown; {hint}")
    row = known.table("devices")[name]
    memory = round(row["memory_gib"] * GIB)
    return Device(
        name=name,
        memory=memory,
        free=memory - round(row["reserve_gib"] * GIB),
        bandwidth=row["bandwidth"] * 1e9,
        bf16=row["bf16"],
        note=f"{row['note']}, {row['bandwidth']} GB/s peak by data sheet; {row['reserve_gib']} GiB for the system",
    )


def _this() -> Device:
    environment = record_environment()
    memory, free = total_memory(), available_memory()
    if memory is None:
        raise PlanError("device 'this': this system does not tell its memory; name another --device")
    return Device(
        name=THIS,
        memory=memory,
        free=memory if free is None else free,
        bandwidth=read_bandwidth(),
        bf16=processor_has_bf16(),
        note=f"{environment['cpu']['model']}, {environment['cores']} cores; memory and read bandwidth as found now",
    )


def read_bandwidth() -> float:
    """Bytes a second that all cores of this machine read from memory: numpy's sum of 128 MiB, the fastest of three.

    Rougher than `mote bench`, which measures more, longer, and also with the kernels. Other programs slow it down.
    """
    import numpy as np

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = np.array_split(np.ones(_READ_BYTES // 8, dtype=np.uint64), cores)
    seconds = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(3):
            begun = time.perf_counter()
            list(pool.map(np.sum, parts))
            seconds.append(time.perf_counter() - begun)
    return _READ_BYTES / min(seconds)
