"""Reading a checkpoint: every claim is checked on opening, and one tensor at a time is mapped into memory.

Opening needs no torch and reads no weights but the scales of a packed checkpoint; `Checkpoint.read` maps the
pages of one tensor privately, so that memory holds what the caller keeps, not the model. Pickles are never
opened.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mote.checkpoint.contract import QUANT_METHOD, MoteConfig
from mote.checkpoint.header import TORCH_NAMES, TensorInfo, parse_json, read_header
from mote.checkpoint.layout import check_layout
from mote.checkpoint.lineage import MOTE_FILE, Lineage, foreign_identity
from mote.errors import CheckpointError, MoteError

if TYPE_CHECKING:
    import torch

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_JSON_LIMIT = 100_000_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FINITE_CHUNK = 1 << 24


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint directory; make one with `Checkpoint.open`.

    root: the directory. config: `config.json` as it stands. mote: its `quantization_config`, or None when
    dense. tensors: by name, in the order of shards and data. shards: file names of the weights.
    """

    root: Path
    config: dict[str, Any]
    mote: MoteConfig | None
    tensors: dict[str, TensorInfo]
    shards: tuple[str, ...]

    @classmethod
    def open(cls, directory: str | Path) -> "Checkpoint":
        """Open and check `directory`: config, index, headers, sizes, bounds, expert tensors and their scales.

        Raises CheckpointError with the file (and tensor) at fault. Hashes and weights are the business of
        `verify`.
        """
        root = Path(directory)
        if not root.is_dir():
            what = "is not a directory" if root.exists() else "does not exist"
            raise CheckpointError(f"{root}: {what}; give the directory of a checkpoint, with its config.json")
        config = _read_json(root / CONFIG_FILE, "give the directory of a checkpoint, with its config.json")
        mote = _mote_config(root, config)
        shards, tensors = _open_shards(root)
        checkpoint = cls(root=root, config=config, mote=mote, tensors=tensors, shards=shards)
        check_layout(checkpoint)
        return checkpoint

    @property
    def state(self) -> str:
        """ "dense", "upcycled" or "packed"."""
        return "dense" if self.mote is None else self.mote.state

    @property
    def lineage(self) -> Lineage | None:
        """What `mote.json` says, or None without one (a foreign checkpoint, or one by `save_pretrained`)."""
        path = self.root / MOTE_FILE
        return Lineage.from_dict(_read_json(path, "write the checkpoint again")) if path.exists() else None

    def identity(self) -> str:
        """Id: SHA-256 of the canonical mote.json; without one, "foreign-" and a hash of all files (slow)."""
        lineage = self.lineage
        return foreign_identity(self.root, (CONFIG_FILE, *self.shards)) if lineage is None else lineage.id

    def info(self, name: str) -> TensorInfo:
        """The tensor called `name`. Raises CheckpointError without one."""
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.root}: holds no tensor {name!r}") from None

    def map(self, name: str) -> tuple[mmap.mmap | bytes, int]:
        """A private mapping around one tensor and the offset of its first byte in it."""
        info = self.info(name)
        if info.nbytes == 0:
            return b"", 0
        inside = info.offset % mmap.ALLOCATIONGRANULARITY
        path = self.root / info.shard
        try:
            with path.open("rb") as file:
                # A copy-on-write mapping: torch wants writable memory, and the file must not change.
                pages = mmap.mmap(
                    file.fileno(),
                    inside + info.nbytes,
                    access=mmap.ACCESS_COPY,
                    offset=info.offset - inside,
                )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: tensor {name!r} cannot be read: {error}") from None
        return pages, inside

    def read(self, name: str, *, finite: bool = False) -> "torch.Tensor":
        """The tensor called `name`, backed by pages of the file; writing to it changes memory only.

        finite: also refuse NaN and Inf. Raises CheckpointError.
        """
        import torch

        info = self.info(name)
        dtype: torch.dtype = getattr(torch, TORCH_NAMES[info.dtype][0])
        pages, inside = self.map(name)
        if not pages:
            return torch.empty(info.shape, dtype=dtype)
        if inside % TORCH_NAMES[info.dtype][1]:
            flat = torch.frombuffer(bytearray(pages[inside : inside + info.nbytes]), dtype=dtype)
        else:
            flat = torch.frombuffer(pages, dtype=dtype, count=info.numel, offset=inside)
        if finite and (bad := count_not_finite(flat)):
            raise CheckpointError(
                f"{self.root / info.shard}: tensor {name!r} holds {bad} NaN or Inf of {info.numel}; "
                "train or fetch the checkpoint again"
            )
        return flat.view(info.shape)


def count_not_finite(tensor: "torch.Tensor") -> int:
    """Number of NaN and Inf in a tensor of any dtype and shape, checked in pieces to save memory."""
    if not tensor.is_floating_point():
        return 0
    flat = tensor.reshape(-1)
    pieces = (flat[start : start + _FINITE_CHUNK] for start in range(0, flat.numel(), _FINITE_CHUNK))
    return sum(int((~piece.float().isfinite()).sum()) for piece in pieces)


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes long, too long for a JSON side file")
        text = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; {advice}") from None
    return parse_json(text, str(path))


def _mote_config(root: Path, config: dict[str, Any]) -> MoteConfig | None:
    plain = config.get("quantization_config")
    if plain is None:
        return None
    method = plain.get("quant_method") if isinstance(plain, dict) else None
    if method != QUANT_METHOD:
        raise CheckpointError(f"{root}: is quantised by {method!r}, which mote does not read; dequantise it first")
    try:
        return MoteConfig.from_dict(plain)
    except MoteError as error:
        raise CheckpointError(f"{root / CONFIG_FILE}: {error}") from None


def _open_shards(root: Path) -> tuple[tuple[str, ...], dict[str, TensorInfo]]:
    # The same precedence as transformers: a single file wins over an index.
    if (root / SINGLE_FILE).is_file():
        return (SINGLE_FILE,), {info.name: info for info in read_header(root / SINGLE_FILE)}
    if not (root / INDEX_FILE).is_file():
        raise _no_weights(root)
    place = _read_json(root / INDEX_FILE, "fetch it again").get("weight_map")
    if not isinstance(place, dict) or not place or not all(isinstance(shard, str) for shard in place.values()):
        raise CheckpointError(f"{root / INDEX_FILE}: has no weight_map of tensor names to files")
    shards = tuple(sorted(set(place.values())))
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{root / INDEX_FILE}: names {shard!r}, not a safetensors file of this directory")
        for info in read_header(root / shard):
            if place.get(info.name) != shard:
                raise CheckpointError(f"{root / shard}: holds {info.name!r}, which the index does not place there")
            tensors[info.name] = info
    missing = sorted(place.keys() - tensors.keys())
    if missing:
        raise CheckpointError(f"{root / place[missing[0]]}: lacks {missing[0]!r}, which the index places there")
    return shards, tensors


def _no_weights(root: Path) -> CheckpointError:
    names = sorted(path.name for path in root.iterdir())
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return CheckpointError(
            f"{root / pickles[0]}: is a pickle, which can run code, so mote never opens it; "
            "convert the checkpoint to safetensors (save_pretrained of transformers writes it)"
        )
    return CheckpointError(f"{root}: holds neither {SINGLE_FILE} nor {INDEX_FILE}; is the download complete?")
