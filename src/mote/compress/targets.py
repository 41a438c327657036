"""Which matrices outside of the routed experts are packed, found by the names and shapes of a model's tensors.

The same for a model in memory and for a checkpoint on disk, whose names differ in their beginnings only.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from mote.checkpoint.contract import SIZES, MoteConfig
from mote.checkpoint.layout import ATTENTION, NO_TOWER, TOWER, VISION, decoder_prefixes, tower_matrices
from mote.errors import UnsupportedModelError
from mote.model.families import PROJECTIONS
from mote.model.packed import packable
from mote.ternary.format import WeightFormat, integer_codec

_SIZES_OF = {
    "gate_proj": ("ffn_size", "hidden_size"),
    "up_proj": ("ffn_size", "hidden_size"),
    "down_proj": ("hidden_size", "ffn_size"),
    "q_proj": ("query_size", "hidden_size"),
    "k_proj": ("key_value_size", "hidden_size"),
    "v_proj": ("key_value_size", "hidden_size"),
    "o_proj": ("hidden_size", "query_size"),
    "lm_head": ("vocab_size", "hidden_size"),
    "embed_tokens": ("vocab_size", "hidden_size"),
}
"""Last part of a module's name -> what its rows and columns are called in the contract."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What to pack: module name -> number format, and the contract, which states its sizes."""

    contract: MoteConfig
    formats: Mapping[str, WeightFormat]


def find_targets(contract: MoteConfig, shapes: Mapping[str, tuple[int, ...]], where: str, *, tied: bool) -> Targets:
    """The targets in a model whose weights have these `shapes`, by name ("model.layers.0.mlp.up_proj.weight").

    tied: whether the embedding is the head. Raises UnsupportedModelError, naming `where`, when a matrix that the
    contract promises is not there or the layers disagree on its shape.
    """
    formats = dict(_in_layers(contract, shapes))
    if not decoder_prefixes(shapes):
        raise UnsupportedModelError(f"{where}: no decoder layers with .mlp.gate_proj; looked at the tensors' names")
    if integer_codec(contract.head):
        formats[_head(shapes, where, tied=tied)] = contract.head
    if integer_codec(contract.tower):
        formats |= dict.fromkeys(_tower(shapes, where), contract.tower)
    sizes = {name: getattr(contract, name) for name in SIZES if getattr(contract, name)}
    gates = (".mlp.gate_proj.weight", ".mlp.experts.gate_proj")
    first = next((name for name in shapes if name.endswith(gates) and not VISION.search(name)), None)
    for tensor in [*([first] if first else []), *(f"{module}.weight" for module in formats)]:
        shape = shapes.get(tensor)
        if shape is None:
            raise UnsupportedModelError(f"{where}: no {tensor} to pack; looked for it beside the others")
        sizes_of = TOWER if VISION.search(tensor) else _SIZES_OF
        for name, size in zip(sizes_of[tensor.removesuffix(".weight").rpartition(".")[2]], shape[-2:], strict=True):
            if sizes.setdefault(name, size) != size:
                raise UnsupportedModelError(
                    f"{where}: {tensor} is {list(shape)}, but {name} is {sizes[name]} elsewhere; packing needs "
                    "layers of one shape"
                )
    return Targets(contract=replace(contract, **sizes), formats=formats)


def _in_layers(contract: MoteConfig, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, WeightFormat]]:
    for layer, prefix in decoder_prefixes(shapes).items():
        mixed = layer in contract.layers
        # A ternary shared expert was trained on its grid; the FFN of a layer without a mixture was not.
        if packable(contract.shared) and (contract.shared_expert if mixed else integer_codec(contract.shared)):
            yield from ((f"{prefix}mlp.{name}", contract.shared) for name in PROJECTIONS)
        if integer_codec(contract.attention):
            yield from ((f"{prefix}self_attn.{name}", contract.attention) for name in ATTENTION)


def _tower(shapes: Mapping[str, tuple[int, ...]], where: str) -> Iterable[str]:
    if not (found := tower_matrices(shapes)):
        raise UnsupportedModelError(f"{where}: {NO_TOWER}")
    return found


def _head(shapes: Mapping[str, tuple[int, ...]], where: str, *, tied: bool) -> str:
    last = "embed_tokens" if tied else "lm_head"
    weight = f"{last}.weight"
    found = [name for name in shapes if (name == weight or name.endswith(f".{weight}")) and not VISION.search(name)]
    if len(found) != 1:
        raise UnsupportedModelError(f"{where}: found {len(found)} tensors {weight}; looked for one to pack as the head")
    return found[0].removesuffix(".weight")
