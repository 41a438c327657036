"""Bytes: what a checkpoint truly takes, per component, and the paper's accounting, which is another number.

True bytes are those of the files: scales, routers, padding and everything else. The paper counts FFN weights
only, with no scales, in GiB = 2^30 bytes: for hidden size H, FFN width F, L layers and E routed experts

    bytes = 3 H F L (b_shared + E b_routed) / 8,       b in bits per weight.

The two are never quoted as one another; every number of the second kind has `paper` in its name.
Source of the table: arXiv 2506.14435, as quoted in its table of memory (18.1, 6.8 and 3.4 GB at 3B).
"""

import functools
import math
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from mote.checkpoint.contract import CLASSES, MoteConfig
from mote.checkpoint.header import PlannedTensor, TensorInfo
from mote.checkpoint.layout import (
    MATRICES,
    VISION,
    decoder_prefixes,
    ffn_sizes,
    is_ternary,
    matrix_shape,
    mixture_prefixes,
)
from mote.checkpoint.shards import Checkpoint
from mote.ternary.format import integer_codec

GIB = 1 << 30
BF16_BITS = Fraction(16)
TWO_BIT = Fraction(2)
BASE3_BITS = Fraction(8, 5)

COMPONENTS = (
    *("vision_tower", "connector", "embeddings", "attention", "norms", "dense_ffn", "shared_experts"),
    *("routed_experts", "routers", "scales", "other"),
)
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (component, re.compile(pattern))
    for component, pattern in (
        ("vision_tower", VISION.pattern),
        ("connector", r"(^|\.)(multi_modal_projector|mm_projector|connector)\."),
        ("routers", r"\.mlp\.router\.weight$"),
        (
            "scales",
            r"\.mlp\.experts\.(\w+_proj_(scale|zero)|gain)$|\.(mlp|self_attn)\.\w+_proj\.(scale|zero)$"
            r"|(^|\.)(embed_tokens|lm_head)\.(scale|zero)$",
        ),
        ("routed_experts", r"\.mlp\.experts\."),
        ("dense_ffn", r"\.mlp\.(gate|up|down)_proj\."),
        ("attention", r"\.self_attn\."),
        ("embeddings", r"(^|\.)(embed_tokens|lm_head)\."),
        ("norms", r"norm\.(weight|bias)$"),
    )
)


def component_of(name: str, mixtures: frozenset[str] = frozenset()) -> str:
    """Which of `COMPONENTS` a tensor belongs to; `mixtures` are the prefixes of layers with a mixture."""
    component = _component(name)
    if component == "dense_ffn" and any(name.startswith(prefix) for prefix in mixtures):
        return "shared_experts"
    return component


@functools.lru_cache(maxsize=1 << 16)
def _component(name: str) -> str:
    return next((component for component, pattern in _PATTERNS if pattern.search(name)), "other")


def component_bytes(tensors: Iterable[TensorInfo | PlannedTensor]) -> dict[str, int]:
    """Bytes of tensors, there or planned, per component; every component is there, and they add up to all tensors."""
    tensors = list(tensors)
    mixtures = frozenset(mixture_prefixes(tensor.name for tensor in tensors).values())
    total = dict.fromkeys(COMPONENTS, 0)
    for tensor in tensors:
        total[component_of(tensor.name, mixtures)] += tensor.nbytes
    return total


def true_bytes(checkpoint: Checkpoint) -> dict[str, int]:
    """`component_bytes` of what a checkpoint holds."""
    return component_bytes(checkpoint.tensors.values())


def true_ffn_bytes(tensors: Iterable[TensorInfo | PlannedTensor]) -> int:
    """Bytes of the feed-forward networks as they are stored: padding, scales, zero points and routers included."""
    return sum(tensor.nbytes for tensor in tensors if ".mlp." in tensor.name and not VISION.search(tensor.name))


def file_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the weight files on disk, headers included."""
    return sum((checkpoint.root / shard).stat().st_size for shard in checkpoint.shards)


def ffn_bytes(hidden: int, ffn: int, layers: int, *, copies: int = 1, bits: Fraction = BF16_BITS) -> int:
    """Bytes of `copies` FFNs of three matrices in each of `layers` layers, without scales, rounded up."""
    return math.ceil(3 * hidden * ffn * layers * copies * bits / 8)


def paper_gib(
    hidden: int, ffn: int, layers: int, *, shared_bits: Fraction, routed_bits: Fraction, experts: int = 4
) -> float:
    """The paper's accounting in GiB: FFN weights only, no scales, a mixture in every layer.

    shared_bits: bits per weight of the shared expert, 0 without one. routed_bits: of the routed experts.
    """
    return float(3 * hidden * ffn * layers * (shared_bits + experts * routed_bits) / 8 / GIB)


def paper_gib_of(mote: MoteConfig | None, hidden: int, ffn: int, layers: int) -> float:
    """The paper's accounting, GiB, of a whole model with `layers` layers: mixtures where `mote` has them, and the
    feed-forward networks of the others, which are in the shared expert's format where that is an integer one."""
    if mote is None:
        return paper_gib(hidden, ffn, layers, shared_bits=BF16_BITS, routed_bits=Fraction(0))
    shared = nominal_bits(mote, routed=False)
    # A ternary shared expert was trained on its grid; the network of a layer without a mixture was not.
    others = shared if integer_codec(mote.shared) else BF16_BITS
    mixed = paper_gib(
        *(hidden, ffn, len(mote.layers)),
        shared_bits=shared if mote.shared_expert else Fraction(0),
        routed_bits=nominal_bits(mote, routed=True),
        experts=mote.num_experts,
    )
    return mixed + paper_gib(
        hidden, ffn, layers - len(mote.layers), shared_bits=others, routed_bits=Fraction(0), experts=0
    )


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """JSON-able summary for `mote info`: identity, mixture, true bytes, the paper's accounting apart.

    `paper_gib`, `ffn_bytes` and `file_bytes` are what `mote plan` calls so; the first is there for models with SwiGLU
    decoder layers only.
    """
    lineage, mote = checkpoint.lineage, checkpoint.mote
    summary: dict[str, Any] = {
        "path": str(checkpoint.root),
        "id": None if lineage is None else lineage.id,
        "state": checkpoint.state,
        "base_model_type": checkpoint.config.get("base_model_type", checkpoint.config.get("model_type")),
        "lineage": None if lineage is None else lineage.to_dict(),
        "tensors": len(checkpoint.tensors),
        "shards": list(checkpoint.shards),
        "true_bytes": {
            **true_bytes(checkpoint),
            "tensors": _tensor_bytes(checkpoint),
            "files": file_bytes(checkpoint),
        },
        "ffn_bytes": true_ffn_bytes(checkpoint.tensors.values()),
        "file_bytes": file_bytes(checkpoint),
    }
    prefixes = decoder_prefixes(checkpoint.tensors)
    if prefixes:
        sizes = mote or MoteConfig()
        first = f"{next(iter(prefixes.values()))}mlp."
        hidden, ffn = ffn_sizes(sizes, checkpoint.config, checkpoint.tensors, first)
        summary["paper_gib"] = paper_gib_of(mote, hidden, ffn, len(prefixes))
    if mote is not None:
        summary["formats"] = {name: mote.to_dict()[name] for name in CLASSES if name != "routed"}
        if mote.layers:
            summary["mixture"] = _mixture(checkpoint, mote)
        else:
            layers = len(decoder_prefixes(checkpoint.tensors))
            summary["paper_accounting_gib"] = paper_gib(
                mote.hidden_size,
                mote.ffn_size,
                layers,
                shared_bits=nominal_bits(mote, routed=False),
                routed_bits=Fraction(0),
            )
    return summary


def _tensor_bytes(checkpoint: Checkpoint) -> int:
    return sum(info.nbytes for info in checkpoint.tensors.values())


def _mixture(checkpoint: Checkpoint, mote: MoteConfig) -> dict[str, Any]:
    prefixes = mixture_prefixes(checkpoint.tensors)
    weights = stored = 0
    hidden = ffn = 0
    for prefix in prefixes.values():
        hidden, ffn = ffn_sizes(mote, checkpoint.config, checkpoint.tensors, prefix)
        weights += mote.num_experts * sum(math.prod(matrix_shape(matrix, hidden, ffn)) for matrix in MATRICES)
        # Padding and scales of the routed experts count; the gain is a scale too.
        stored += sum(info.nbytes for name, info in checkpoint.tensors.items() if name.startswith(f"{prefix}experts."))
    layers = len(prefixes)
    return {
        "layers": list(mote.layers),
        "hidden_size": hidden,
        "ffn_size": ffn,
        "num_experts": mote.num_experts,
        "top_k": mote.top_k,
        "combine": mote.combine,
        "shared_expert": mote.shared_expert,
        "codec": mote.codec,
        "routed": mote.to_dict()["routed"],
        "shared": mote.to_dict()["shared"],
        "expert_weights": weights,
        "bits_per_expert_weight": 8 * stored / weights if weights else 0.0,
        "same_layers_bytes": {
            "dense_ffn_bf16": ffn_bytes(hidden, ffn, layers),
            "moe_llava_experts_bf16": ffn_bytes(hidden, ffn, layers, copies=mote.num_experts),
        },
        "paper_accounting_gib": paper_gib(
            hidden,
            ffn,
            layers,
            shared_bits=nominal_bits(mote, routed=False) if mote.shared_expert else Fraction(0),
            routed_bits=nominal_bits(mote, routed=True),
            experts=mote.num_experts,
        ),
    }


def nominal_bits(mote: MoteConfig, *, routed: bool) -> Fraction:
    """Bits per weight in the paper's sense: of the format, whatever is stored; floats count as BF16."""
    fmt = mote.routed if routed else mote.shared
    if is_ternary(fmt):
        return BASE3_BITS if mote.codec == "base3" else TWO_BIT
    return Fraction(fmt.bits) if fmt.bits else BF16_BITS
