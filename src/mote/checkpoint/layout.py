"""Names and shapes of the tensors of a mixture, and the check that a checkpoint holds exactly these.

Legend: E experts, N rows (outputs), K columns (inputs) of a matrix, H hidden size, F FFN width, G scale
groups. In layer `<layer>` the shared expert keeps the names of the dense FFN, so that dense keys stay valid:

    <layer>.mlp.{gate,up,down}_proj.weight              shared expert [N, K]
    <layer>.mlp.{gate,up,down}_proj.{packed,scale}      the same when it is ternary and packed
    <layer>.mlp.router.weight                           [E, H] F32
    <layer>.mlp.experts.{gate,up,down}_proj             up-cycled experts [E, N, K], any float dtype
    <layer>.mlp.experts.gain                            [E] F32, combine "gated", up-cycled only
    <layer>.mlp.experts.{gate,up,down}_proj_packed      [E, S, KG, 256] U8, see `mote.ternary.codecs`
    <layer>.mlp.experts.{gate,up,down}_proj_scale       [E] | [E, N] | [E, N, G] F32
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.header import TensorInfo
from mote.errors import CheckpointError, MoteError
from mote.ternary.format import WeightFormat

if TYPE_CHECKING:
    from mote.checkpoint.shards import Checkpoint

MATRICES = ("gate_proj", "up_proj", "down_proj")
FLOATS = ("F32", "BF16", "F16", "F64")
_MIXTURE = re.compile(r"^(?:.*\.)?layers\.(\d+)\.mlp\.router\.weight$")
_PACKED = re.compile(r"\.mlp\.experts\.(gate|up|down)_proj_packed$")

Expected = tuple[tuple[str, ...], tuple[int, ...]]
"""Allowed dtypes and the shape of a tensor."""


def is_packable(fmt: WeightFormat) -> bool:
    """Whether the codecs hold this grid: -1, 0, 1 and its subset -1, 1."""
    return fmt.quantizer in ("ternary", "binary")


def matrix_shape(matrix: str, hidden: int, ffn: int) -> tuple[int, int]:
    """(N, K) of one of `MATRICES`: [F, H] for gate and up, [H, F] for down."""
    return (hidden, ffn) if matrix == "down_proj" else (ffn, hidden)


def scale_shape(fmt: WeightFormat, rows: int, cols: int) -> tuple[int, ...]:
    """Shape of the scales of one matrix [rows, cols], without a leading expert dimension."""
    if fmt.granularity == "tensor":
        return ()
    if fmt.granularity == "row":
        return (rows,)
    return (rows, -(-cols // fmt.group))


def mixture_prefixes(names: Iterable[str]) -> dict[int, str]:
    """Layer index -> prefix of its FFN with a trailing dot ("model.layers.3.mlp."), found by the routers."""
    found: dict[int, str] = {}
    for name in names:
        if match := _MIXTURE.match(name):
            layer = int(match[1])
            if layer in found:
                raise CheckpointError(f"two routers claim layer {layer}: {found[layer]}router.weight and {name}")
            found[layer] = name.removesuffix("router.weight")
    return dict(sorted(found.items()))


def ffn_sizes(mote: MoteConfig, config: dict[str, Any], tensors: dict[str, TensorInfo], prefix: str) -> tuple[int, int]:
    """(H, F) of the FFN at `prefix`: as stated, else of a float tensor, else of the text config."""
    if mote.hidden_size and mote.ffn_size:
        return mote.hidden_size, mote.ffn_size
    for name in (f"{prefix}gate_proj.weight", f"{prefix}experts.gate_proj"):
        if name in tensors and len(tensors[name].shape) >= 2:
            ffn, hidden = tensors[name].shape[-2:]
            return hidden, ffn
    text = config.get("text_config")
    for place in (text if isinstance(text, dict) else {}, config):
        stated = (place.get("hidden_size"), place.get("intermediate_size"))
        if isinstance(stated[0], int) and isinstance(stated[1], int):
            return stated[0], stated[1]
    raise CheckpointError("config.json: neither quantization_config nor text_config states hidden_size and ffn_size")


def expected_tensors(mote: MoteConfig, prefix: str, hidden: int, ffn: int) -> dict[str, Expected]:
    """Every tensor of the mixture at `prefix`. Raises FormatError on sizes that the codec cannot hold."""
    experts = mote.num_experts
    expected: dict[str, Expected] = {f"{prefix}router.weight": (("F32",), (experts, hidden))}
    for matrix in MATRICES:
        rows, cols = matrix_shape(matrix, hidden, ffn)
        if mote.codec is not None and is_packable(mote.routed):
            name = f"{prefix}experts.{matrix}"
            expected[f"{name}_packed"] = (
                ("U8",),
                (experts, *_packed_shape(mote.codec, mote.routed, rows, cols)),
            )
            expected[f"{name}_scale"] = (("F32",), (experts, *scale_shape(mote.routed, rows, cols)))
        else:
            expected[f"{prefix}experts.{matrix}"] = (FLOATS, (experts, rows, cols))
        if not mote.shared_expert:
            continue
        if mote.codec is not None and is_packable(mote.shared):
            expected[f"{prefix}{matrix}.packed"] = (
                ("U8",),
                _packed_shape(mote.codec, mote.shared, rows, cols),
            )
            expected[f"{prefix}{matrix}.scale"] = (("F32",), scale_shape(mote.shared, rows, cols))
        else:
            expected[f"{prefix}{matrix}.weight"] = (FLOATS, (rows, cols))
    if mote.combine == "gated" and mote.state == "upcycled":
        expected[f"{prefix}experts.gain"] = (("F32",), (experts,))
    return expected


def _packed_shape(codec: str, fmt: WeightFormat, rows: int, cols: int) -> tuple[int, ...]:
    # Here and not at the top: the codecs import torch, which a look at a float checkpoint does not need.
    from mote.ternary.codecs import CODECS

    return tuple(CODECS[codec].packed_shape(rows, cols, fmt.group))


def check_layout(checkpoint: "Checkpoint") -> None:
    """Raise CheckpointError unless every mixture has its tensors in dtype and shape, and finite scales."""
    mote, tensors, root = checkpoint.mote, checkpoint.tensors, checkpoint.root
    if mote is None:
        stray = next((name for name in tensors if _PACKED.search(name)), None)
        if stray is not None:
            raise CheckpointError(
                f"{root}: holds packed experts ({stray}), but its config.json has lost quantization_config; "
                "take config.json from the checkpoint that was packed"
            )
        return
    try:
        found = mixture_prefixes(tensors)
        if tuple(found) != mote.layers:
            raise CheckpointError(f"routers stand in layers {list(found)}, config.json says {list(mote.layers)}")
        for prefix in found.values():
            hidden, ffn = ffn_sizes(mote, checkpoint.config, tensors, prefix)
            for name, expected in expected_tensors(mote, prefix, hidden, ffn).items():
                _check_tensor(checkpoint, name, expected)
    except MoteError as error:
        raise CheckpointError(f"{root}: {error}") from None


def _check_tensor(checkpoint: "Checkpoint", name: str, expected: Expected) -> None:
    info = checkpoint.tensors.get(name)
    dtypes, shape = expected
    if info is None:
        raise CheckpointError(f"lacks tensor {name!r}, which its quantization_config promises")
    if info.dtype not in dtypes or info.shape != shape:
        raise CheckpointError(
            f"tensor {name!r} in {info.shard} is {info.dtype}{list(info.shape)}, not {dtypes[0]}{list(shape)}"
        )
    if name.endswith(("_scale", ".scale")):
        _check_scales(checkpoint, info)


def _check_scales(checkpoint: "Checkpoint", info: TensorInfo) -> None:
    # Not "> 0": a gain of the gated combine, which may be negative, is folded into the scales of down_proj.
    import numpy as np

    pages, inside = checkpoint.map(info.name)
    if not np.isfinite(np.frombuffer(pages, dtype="<f4", count=info.numel, offset=inside)).all():
        raise CheckpointError(f"tensor {info.name!r} in {info.shard} holds scales that are NaN or Inf; pack again")
