"""The tensors that a checkpoint will hold, from a dense model's names and shapes and a contract, without weights.

What up-cycling and packing write follows from the contract and from `layout` alone; here it is asked for before there
is anything to write. There is no formula of bytes in this file: names, dtypes and shapes come from `expected_tensors`
and `Linear.expected`, which a checkpoint is checked against when it is opened.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.layout import (
    MATRICES,
    NO_TOWER,
    VISION,
    Linear,
    decoder_prefixes,
    expected_tensors,
    plain_linears,
    tower_matrices,
)
from mote.errors import CheckpointError, UnsupportedModelError
from mote.ternary.format import integer_codec

Shapes = Mapping[str, tuple[int, ...]]


def with_sizes(mote: MoteConfig, shapes: Shapes) -> MoteConfig:
    """`mote` with the sizes that packed tensors do not tell, from the `shapes` of a dense model's tensors by name.

    Raises UnsupportedModelError when there is no decoder layer with `.mlp.gate_proj.weight`, or no vision tower of a
    known kind where the contract packs it.
    """
    prefix = next(iter(decoder_prefixes(shapes).values()), None)
    if prefix is None:
        raise UnsupportedModelError("no decoder layers with .mlp.gate_proj; looked at the tensors' names")
    ffn, hidden = shapes[f"{prefix}mlp.gate_proj.weight"]
    query = shapes.get(f"{prefix}self_attn.q_proj.weight", (0,))[0]
    key_value = shapes.get(f"{prefix}self_attn.k_proj.weight", (0,))[0]
    vocabulary = shapes[table_of(shapes)][0]
    tower: dict[str, Any] = {}
    matrices = tower_matrices(shapes)
    if integer_codec(mote.tower) and not matrices:
        raise UnsupportedModelError(NO_TOWER)
    for module, sizes in matrices.items():
        tower |= dict(zip(sizes, shapes[f"{module}.weight"], strict=True))
    return replace(
        mote,
        hidden_size=hidden,
        ffn_size=ffn,
        query_size=query,
        key_value_size=key_value,
        vocab_size=vocabulary,
        **(tower if integer_codec(mote.tower) else {}),
    )


def table_of(names: Iterable[str]) -> str:
    """Name of the embedding of a dense model. Raises UnsupportedModelError unless there is one."""
    found = [name for name in names if name.endswith("embed_tokens.weight") and not VISION.search(name)]
    if len(found) != 1:
        raise UnsupportedModelError(f"found {len(found)} tensors embed_tokens.weight; looked for one")
    return found[0]


def head_of(names: Iterable[str]) -> str | None:
    """Module of the head among the names of a checkpoint's tensors, packed or not; None for one that is tied to its
    embedding."""
    found = (name.rpartition(".") for name in names)
    heads = (module for module, _, last in found if last in ("weight", "packed"))
    return next((module for module in heads if module == "lm_head" or module.endswith(".lm_head")), None)


def stated_head(names: Iterable[str], where: Path, *, tied: bool) -> str:
    """Module of the head, "" for the embedding: where there is a head it counts, whatever config.json says, as in
    transformers. Raises CheckpointError, naming `where`, for a head that is neither there nor `tied`."""
    head = head_of(names)
    if not head and not tied:
        raise CheckpointError(f"{where}: lacks lm_head.weight, which config.json asks for; fetch it again")
    return head or ""


def planned_tensors(dense: Iterable[PlannedTensor], mote: MoteConfig | None) -> list[PlannedTensor]:
    """The tensors of the checkpoint that `mote` describes, made from those of a `dense` model, in their order.

    A dense model without a head tensor is tied. mote: "upcycled" or "packed", sizes not needed; None leaves the model
    dense. Raises FormatError for sizes that a codec cannot hold, UnsupportedModelError for a model without decoder
    layers of a known kind, or without what the contract says is packed.
    """
    source = {tensor.name: tensor for tensor in dense}
    if mote is None:
        return list(source.values())
    mote = with_sizes(mote, {name: tensor.shape for name, tensor in source.items()})
    linears = _linears(mote, source)
    for module in linears:
        if f"{module}.weight" not in source:
            raise UnsupportedModelError(f"no {module}.weight to pack; looked for it among the tensors' names")
    mixtures = {prefix: f"{prefix}mlp." for i, prefix in decoder_prefixes(source).items() if i in mote.layers}
    first = {f"{ffn}gate_proj.weight": ffn for ffn in mixtures.values()}
    inside = {f"{ffn}{matrix}.weight" for ffn in mixtures.values() for matrix in MATRICES}
    found: list[PlannedTensor] = []
    for name, tensor in source.items():
        if name in first:
            expected = expected_tensors(mote, first[name], mote.hidden_size, mote.ffn_size)
            found += [PlannedTensor(n, _dtype(dtypes, tensor.dtype), shape) for n, (dtypes, shape) in expected.items()]
        elif name.removesuffix(".weight") in linears:
            module = name.removesuffix(".weight")
            promised = linears[module].expected(module).items()
            found += [PlannedTensor(n, _dtype(dtypes, tensor.dtype), shape) for n, (dtypes, shape) in promised]
        elif name not in inside:
            found.append(tensor)
    return found


def _linears(mote: MoteConfig, source: Iterable[str]) -> dict[str, Linear]:
    """What is packed outside of the mixtures: `plain_linears` finds a head by its packed name."""
    names = list(source)
    if integer_codec(mote.head):
        head = head_of(names) or table_of(names).removesuffix(".weight")
        names = [f"{head}.packed" if name == f"{head}.weight" else name for name in names]
    return plain_linears(mote, names)


def _dtype(allowed: tuple[str, ...], kept: str) -> str:
    """The one dtype that a tensor may have, or where it may have several that of the dense matrix in its place."""
    return allowed[0] if len(allowed) == 1 else kept
