"""Names and shapes of the tensors of a mixture and of packed matrices, and the check that a checkpoint holds exactly
these.

Legend: E experts, N rows (outputs), K columns (inputs) of a matrix, H hidden size, F FFN width, G scale
groups, S strips of 64 rows, KG k-groups. In layer `<layer>` the shared expert keeps the names of the dense FFN, so that
dense keys stay valid:

    <layer>.mlp.{gate,up,down}_proj.weight              shared expert [N, K]
    <layer>.mlp.router.weight                           [E, H] F32
    <layer>.mlp.experts.{gate,up,down}_proj             up-cycled experts [E, N, K], any float dtype
    <layer>.mlp.experts.gain                            [E] F32, combine "gated", up-cycled only
    <layer>.mlp.experts.{gate,up,down}_proj_packed      [E, S, KG, 256 | 768] U8, see `mote.ternary.codecs`
    <layer>.mlp.experts.{gate,up,down}_proj_scale       ternary: [E] | [E, N] | [E, N, G] F32; else as `<module>.scale`
    <layer>.mlp.experts.{gate,up,down}_proj_zero        [E, S, G, 64] BF16, of grids that are not symmetric

A packed linear (shared expert, FFN of a layer without a mixture, attention projection, head or tied table, matrix in a
layer of the vision tower) has, where `<module>.weight` was,

    <module>.packed                                     [S, KG, 256 | 768] U8
    <module>.scale                                      ternary: [] | [N] | [N, G] F32; integers: [S, G, 64] BF16
    <module>.zero                                       [S, G, 64] BF16, of grids that are not symmetric
"""

import re
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.header import TensorInfo
from mote.errors import CheckpointError, MoteError
from mote.ternary.codecs import CODECS
from mote.ternary.format import WeightFormat, integer_codec

if TYPE_CHECKING:
    from mote.checkpoint.shards import Checkpoint

MATRICES = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FLOATS = ("F32", "BF16", "F16", "F64")
STRIP_ROWS = 64
VISION = re.compile(r"(^|\.)(vision_tower|vision_model|visual|vision_encoder)\.")
_MIXTURE = re.compile(r"^(?:.*\.)?layers\.(\d+)\.mlp\.router\.weight$")
_DECODER = re.compile(r"^((?:.*\.)?layers\.(\d+)\.)mlp\.(?:router\.weight|gate_proj\.(?:weight|packed))$")
TOWER = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"), ("tower_hidden_size", "tower_hidden_size")),
    **dict.fromkeys(("query", "key", "value", "dense"), ("tower_hidden_size", "tower_hidden_size")),
    "fc1": ("tower_ffn_size", "tower_hidden_size"),
    "fc2": ("tower_hidden_size", "tower_ffn_size"),
}
"""Last part of the name of a matrix in a vision tower's layers (CLIP, SigLIP, DINOv2 by either of its names) -> what
its rows and columns are called in the contract."""
NO_TOWER = f"no vision tower to pack; looked for layers with {', '.join(TOWER)}"
"""What is said of a model without any of them."""
_IN_TOWER = re.compile(rf"^(.*\.layers?\.\d+\..*\b({'|'.join(TOWER)}))\.(?:weight|packed)$")
_PACKED = re.compile(
    rf"(\.mlp\.experts\.(gate|up|down)_proj_packed|(_proj|embed_tokens|lm_head|{'|'.join(TOWER)})\.packed)$"
)
_HEAD = re.compile(r"^(?:.*\.)?(?:lm_head|embed_tokens)\.packed$")

Expected = tuple[tuple[str, ...], tuple[int, ...]]
"""Allowed dtypes and the shape of a tensor."""


class Linear(NamedTuple):
    """What the bytes of a packed matrix W [rows, cols] cannot say themselves; codec: key in `mote.ternary.codecs`."""

    rows: int
    cols: int
    format: WeightFormat
    codec: str

    def expected(self, module: str) -> dict[str, Expected]:
        """The tensors of the packed linear called `module`. Raises FormatError on sizes the codec cannot hold."""
        return {f"{module}.{part}": expected for part, expected in self.parts().items()}

    def stack(self, name: str, experts: int) -> dict[str, Expected]:
        """Those of a stack of so many matrices, of routed experts, called `name`."""
        return {f"{name}_{part}": (types, (experts, *shape)) for part, (types, shape) in self.parts().items()}

    def parts(self) -> dict[str, Expected]:
        """Types and shape of "packed", "scale" and, where the grid is not symmetric, "zero", in this order."""
        scale_dtype, scales = (
            "F32" if is_ternary(self.format) else "BF16",
            scale_shape(self.format, self.rows, self.cols),
        )
        parts: dict[str, Expected] = {
            "packed": (("U8",), _packed_shape(self.codec, self.format, self.rows, self.cols)),
            "scale": ((scale_dtype,), scales),
        }
        return parts if self.format.symmetric else {**parts, "zero": (("BF16",), scales)}


def is_ternary(fmt: WeightFormat) -> bool:
    """Whether the grid is that of the ternary codecs: -1, 0, 1, or its subset -1, 1."""
    return fmt.quantizer in ("ternary", "binary")


def codec_of(mote: MoteConfig, fmt: WeightFormat) -> str | None:
    """Name of the codec of matrices in `fmt`, which is one of the formats of `mote`; None where they are floats."""
    if mote.state != "packed":
        return None
    return mote.codec if is_ternary(fmt) else integer_codec(fmt)


def matrix_shape(matrix: str, hidden: int, ffn: int) -> tuple[int, int]:
    """(N, K) of one of `MATRICES`: [F, H] for gate and up, [H, F] for down."""
    return (hidden, ffn) if matrix == "down_proj" else (ffn, hidden)


def scale_shape(fmt: WeightFormat, rows: int, cols: int) -> tuple[int, ...]:
    """Shape of the scales of one packed matrix [rows, cols], without a leading expert dimension."""
    if fmt.granularity == "tensor":
        return ()
    if fmt.granularity == "row":
        return (rows,)
    groups = -(-cols // fmt.group)
    return (rows, groups) if integer_codec(fmt) is None else (-(-rows // STRIP_ROWS), groups, STRIP_ROWS)


def gain_of(stack: str, names: Container[str]) -> str:
    """Name of the gains that belong into the experts' matrices "...mlp.experts.down_proj", "" where there are none."""
    gain = stack.removesuffix("down_proj") + "gain"
    return gain if stack.endswith("down_proj") and gain in names else ""


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


def decoder_prefixes(names: Iterable[str]) -> dict[int, str]:
    """Layer index -> prefix of the decoder layer with a trailing dot ("model.layers.3."), found by its FFN."""
    found: dict[int, str] = {}
    for name in names:
        match = _DECODER.match(name)
        if match is None or VISION.search(name):
            continue
        if found.setdefault(int(match[2]), match[1]) != match[1]:
            raise CheckpointError(f"two decoders claim layer {match[2]}: {found[int(match[2])]} and {match[1]}")
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
    routed, shared = codec_of(mote, mote.routed), codec_of(mote, mote.shared)
    for matrix in MATRICES:
        rows, cols = matrix_shape(matrix, hidden, ffn)
        if routed is not None:
            expected |= Linear(rows, cols, mote.routed, routed).stack(f"{prefix}experts.{matrix}", experts)
        else:
            expected[f"{prefix}experts.{matrix}"] = (FLOATS, (experts, rows, cols))
        if not mote.shared_expert:
            continue
        if shared is not None:
            expected |= Linear(rows, cols, mote.shared, shared).expected(f"{prefix}{matrix}")
        else:
            expected[f"{prefix}{matrix}.weight"] = (FLOATS, (rows, cols))
    if mote.combine == "gated" and mote.state == "upcycled":
        expected[f"{prefix}experts.gain"] = (("F32",), (experts,))
    return expected


def tower_matrices(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Name of each matrix in the vision tower's layers -> what its rows and columns are called in the contract.

    names: of all tensors. Embeddings, and what a tower has after its layers, are not among them.
    """
    found = (_IN_TOWER.match(name) for name in names if VISION.search(name))
    return {match[1]: TOWER[match[2]] for match in found if match}


def plain_linears(mote: MoteConfig, names: Iterable[str]) -> dict[str, Linear]:
    """Module name -> sizes of every packed linear outside of the mixtures.

    These are the FFNs of layers without a mixture, the attention projections, the head and the vision tower's matrices.
    names: of all tensors. Raises CheckpointError when the head is not there, or twice.
    """
    names = list(names)
    found: dict[str, Linear] = {}
    ffn, attention, head = (codec_of(mote, fmt) for fmt in (mote.shared, mote.attention, mote.head))
    hidden, query, key_value = mote.hidden_size, mote.query_size, mote.key_value_size
    projections = {"q_proj": (query, hidden), "o_proj": (hidden, query)}
    for layer, prefix in decoder_prefixes(names).items():
        if attention is not None:
            for name in ATTENTION:
                shape = projections.get(name, (key_value, hidden))
                found[f"{prefix}self_attn.{name}"] = Linear(*shape, mote.attention, attention)
        # A shared expert on a ternary grid was trained on it; a dense layer's FFN beside it was not.
        if ffn is not None and layer not in mote.layers and integer_codec(mote.shared):
            for name in MATRICES:
                shape = matrix_shape(name, hidden, mote.ffn_size)
                found[f"{prefix}mlp.{name}"] = Linear(*shape, mote.shared, ffn)
    if head is not None:
        tables = [name for name in names if _HEAD.match(name) and not VISION.search(name)]
        if len(tables) != 1:
            raise CheckpointError(f"holds {len(tables)} packed heads; its quantization_config promises one")
        found[tables[0].removesuffix(".packed")] = Linear(mote.vocab_size, hidden, mote.head, head)
    if (tower := codec_of(mote, mote.tower)) is not None:
        for module, (rows, cols) in tower_matrices(names).items():
            found[module] = Linear(getattr(mote, rows), getattr(mote, cols), mote.tower, tower)
    return found


def _packed_shape(codec: str, fmt: WeightFormat, rows: int, cols: int) -> tuple[int, ...]:
    return tuple(CODECS[codec].packed_shape(rows, cols, fmt.group))


def check_layout(checkpoint: "Checkpoint") -> None:
    """Raise CheckpointError unless every mixture and packed linear has its tensors in dtype and shape, and finite
    scales and zero points."""
    mote, tensors, root = checkpoint.mote, checkpoint.tensors, checkpoint.root
    if mote is None:
        stray = next((name for name in tensors if _PACKED.search(name)), None)
        if stray is not None:
            raise CheckpointError(
                f"{root}: holds packed matrices ({stray}), but its config.json has lost quantization_config; "
                "take config.json from the checkpoint that was packed"
            )
        return
    try:
        found = mixture_prefixes(tensors)
        if tuple(found) != mote.layers:
            raise CheckpointError(f"routers stand in layers {list(found)}, config.json says {list(mote.layers)}")
        expected: dict[str, Expected] = {}
        for prefix in found.values():
            expected |= expected_tensors(mote, prefix, *ffn_sizes(mote, checkpoint.config, tensors, prefix))
        for module, linear in plain_linears(mote, tensors).items():
            expected |= linear.expected(module)
        for name, promised in expected.items():
            _check_tensor(checkpoint, name, promised)
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
    if name.endswith(("_scale", ".scale", "_zero", ".zero")):
        _check_scales(checkpoint, info)


def _check_scales(checkpoint: "Checkpoint", info: TensorInfo) -> None:
    # Not "> 0": a gain of the gated combine, which may be negative, is folded into the scales of down_proj.
    import numpy as np

    pages, inside = checkpoint.map(info.name)
    if info.dtype == "BF16":  # which numpy lacks: NaN and Inf have all bits of the exponent set
        bits = np.frombuffer(pages, dtype="<u2", count=info.numel, offset=inside)
        finite = bool(((bits & 0x7F80) != 0x7F80).all())
    else:
        finite = bool(np.isfinite(np.frombuffer(pages, dtype="<f4", count=info.numel, offset=inside)).all())
    if not finite:
        what = "zero points" if info.name.endswith("zero") else "scales"
        raise CheckpointError(f"tensor {info.name!r} in {info.shard} holds {what} that are NaN or Inf; pack again")
