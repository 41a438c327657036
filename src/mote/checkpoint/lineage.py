"""Lineage of a checkpoint, `mote.json`: its origin, the settings, and the SHA-256 of every file.

Nothing in it is needed to decode a tensor. The id of a checkpoint is the SHA-256 of this file in canonical
form (sorted keys, no white space, UTF-8); since that form holds the hash of every other file, the id stands
for all bytes.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mote.checkpoint.environment import peak_memory, record_environment, reset_peak_memory
from mote.errors import CheckpointError

if TYPE_CHECKING:
    from mote.checkpoint.shards import Checkpoint

MOTE_FILE = "mote.json"
SCHEMA = 1
_CHUNK = 1 << 22


def canonical_json(plain: Any) -> bytes:
    """The one byte string of a JSON value that hashes are taken of."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def pretty_json(plain: Any) -> bytes:
    """JSON for people to read, as our side files hold it."""
    return (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hex. Raises CheckpointError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def foreign_identity(root: Path, names: Iterable[str]) -> str:
    """Id of a checkpoint without mote.json: "foreign-" and a hash of the named files (reads all)."""
    hashes = {name: file_hash(root / name) for name in names}
    return "foreign-" + hashlib.sha256(canonical_json(hashes)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a stage recorded about its output.

    verb: the stage ("assemble", "train", "upcycle", "pack", ...). config: its resolved settings. seed: None
    where nothing is drawn. parent: id of the checkpoint that it read, None at the start. ancestors: (verb,
    id) of all before it, oldest first. inputs: ids or hashes of what else it read. environment: see
    `record_environment`. started: UTC time. wall_seconds, peak_memory_bytes ({"host", "device"}): cost of
    the stage alone. shards, files: SHA-256 of the weights and of every other file.
    """

    verb: str
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    parent: str | None = None
    ancestors: tuple[tuple[str, str], ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    wall_seconds: float = 0.0
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def id(self) -> str:
        """SHA-256 in hex of the canonical mote.json."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as it stands in mote.json; `from_dict` is its inverse."""
        return {**dataclasses.asdict(self), "ancestors": [list(pair) for pair in self.ancestors]}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Lineage":
        """Inverse of `to_dict`. Raises CheckpointError on unknown keys, a wrong type or another schema."""
        if plain.get("schema") != SCHEMA:
            raise CheckpointError(f"{MOTE_FILE}: schema {plain.get('schema')!r} is not {SCHEMA}; use a newer mote")
        try:
            pairs = tuple((str(verb), str(identity)) for verb, identity in plain["ancestors"])
            lineage = cls(**{**plain, "ancestors": pairs})
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{MOTE_FILE}: not a lineage ({error}); write the checkpoint again") from None
        for name in ("shards", "files", "inputs"):
            hashes = getattr(lineage, name)
            if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
                raise CheckpointError(f"{MOTE_FILE}: {name} is not a map of hashes; write the checkpoint again")
        return lineage


def _plain(value: Any) -> Any:
    """A JSON-able copy of settings: dataclasses become objects, paths strings, tuples lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The clock and the facts of a running stage; `start` it first thing, the writer finishes it.

    Example: `provenance = Provenance.start("pack", config=settings, seed=None, parent=checkpoint)`, then
    `write_checkpoint(..., lineage=provenance)`. For an output without weights write
    `provenance.finish().to_dict()`.
    """

    verb: str
    config: dict[str, Any]
    seed: int | None
    parent: str | None
    ancestors: tuple[tuple[str, str], ...]
    inputs: dict[str, str]
    started: str
    clock: float

    @classmethod
    def start(
        cls,
        verb: str,
        *,
        config: Any = None,
        seed: int | None = None,
        parent: "Checkpoint | None" = None,
        inputs: dict[str, str] | None = None,
    ) -> "Provenance":
        """Start the clock and a new memory peak. `config` is a dataclass or mapping of resolved settings."""
        clock = time.perf_counter()
        reset_peak_memory()
        settings = _plain(config if config is not None else {})
        canonical_json(settings)
        identity: str | None = None
        ancestors: tuple[tuple[str, str], ...] = ()
        if parent is not None:
            identity = parent.identity()
            before = parent.lineage
            # A parent of foreign origin is the root of the line.
            ancestors = (("foreign", identity),) if before is None else (*before.ancestors, (before.verb, identity))
        return cls(
            verb=verb,
            config=settings,
            seed=seed,
            parent=identity,
            ancestors=ancestors,
            inputs=dict(inputs or {}),
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            clock=clock,
        )

    def finish(self, *, shards: dict[str, str] | None = None, files: dict[str, str] | None = None) -> Lineage:
        """The lineage of an output with these SHA-256; time and memory are those since `start`."""
        return Lineage(
            verb=self.verb,
            config=self.config,
            seed=self.seed,
            parent=self.parent,
            ancestors=self.ancestors,
            inputs=self.inputs,
            environment=record_environment(),
            started=self.started,
            wall_seconds=round(time.perf_counter() - self.clock, 3),
            peak_memory_bytes=peak_memory(),
            shards=dict(shards or {}),
            files=dict(files or {}),
        )


def seal(folder: Path, provenance: Provenance, *, hashed: dict[str, str] | None = None) -> Lineage:
    """Finish `provenance` and write `folder`/mote.json with the SHA-256 of every file in it; the last step of a stage.

    For what `write_checkpoint` did not write (save_pretrained, reports); call it inside of `new_directory`.
    hashed: hashes of weight files that are known already. Raises CheckpointError.
    """
    shards, files = dict(hashed or {}), dict[str, str]()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in shards and name != MOTE_FILE:
            (shards if name.endswith(".safetensors") else files)[name] = file_hash(path)
    lineage = provenance.finish(shards=shards, files=files)
    (folder / MOTE_FILE).write_bytes(pretty_json(lineage.to_dict()))
    return lineage
