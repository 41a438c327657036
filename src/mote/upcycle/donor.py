"""Where routed experts copy their networks from: the checkpoint itself, or another one of the same shape."""

from pathlib import Path

from torch import Tensor

from mote.checkpoint.shards import Checkpoint
from mote.errors import CheckpointError, UnsupportedModelError
from mote.model.families import DiskAnatomy, disk_anatomy


class Donor:
    """A dense checkpoint's feed-forward matrices, read one at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state != "dense":
            raise CheckpointError(
                f"{checkpoint.root}: is {checkpoint.state}; up-cycling starts from a dense checkpoint, give that one"
            )
        shapes = {name: tuple(info.shape) for name, info in checkpoint.tensors.items()}
        self.checkpoint = checkpoint
        self.anatomy: DiskAnatomy = disk_anatomy(checkpoint.config, shapes, str(checkpoint.root))

    @classmethod
    def open(cls, directory: str) -> "Donor":
        """Opens a directory. Raises CheckpointError or UnsupportedModelError."""
        return cls(Checkpoint.open(Path(directory)))

    def require(self, hidden_size: int, ffn_size: int, layers: tuple[int, ...]) -> None:
        """Raises UnsupportedModelError unless the networks fit a model of this shape."""
        mine = self.anatomy
        if (mine.hidden_size, mine.ffn_size) != (hidden_size, ffn_size) or mine.num_layers <= layers[-1]:
            raise UnsupportedModelError(
                f"{self.checkpoint.root}: networks of {mine.hidden_size} x {mine.ffn_size} in "
                f"{mine.num_layers} layers "
                f"cannot start experts of {hidden_size} x {ffn_size}; choose a checkpoint of the same shape"
            )

    def read(self, layer: int, projection: str) -> Tensor:
        """One matrix [N, K] in the file's dtype. Raises CheckpointError when it holds NaN or Inf."""
        return self.checkpoint.read(self.anatomy.weight(layer, projection), finite=True)

    def dtype(self, layer: int, projection: str) -> str:
        """The matrix's dtype as safetensors spells it."""
        return self.checkpoint.info(self.anatomy.weight(layer, projection)).dtype
