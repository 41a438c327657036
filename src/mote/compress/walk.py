"""Calibrated methods, one decoder layer after the other: watch what its matrices read, quantise them, go on.

The next layer is calibrated on what the quantised ones before it give, and a routed expert on the tokens that are
routed to it. One layer at a time is in fp32; of the others memory holds the weights, of those that are done only the
packed result, and the hidden states of the calibration data between two layers. The forward passes, which take
most of the time, run in bf16 where the hardware has it, as evaluations do; what a method makes of the inputs is fp32.

Shape suffixes: B conversations, T tokens, H hidden, R input rows, K columns.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.layout import ATTENTION, MATRICES
from mote.checkpoint.resident import Resident
from mote.compress.calibration import Batch
from mote.compress.layerwise import enter, let_go, through
from mote.model.block import MoteBlock, QuantizedLinear
from mote.model.experts import FloatExperts
from mote.model.families import anatomy
from mote.model.linears import embedding_of, is_tied
from mote.model.precision import Precision, autocast
from mote.ternary.format import WeightFormat, integer_codec
from mote.ternary.integers import IntegerWeight, PackedTensors, dequantize_integers, pack_integers
from mote.ternary.round_to_nearest import nearest

READ_ALIKE = {"k_proj": "q_proj", "v_proj": "q_proj", "gate_proj": "up_proj"}
"""Matrix -> another one that reads the same, whose inputs are watched in its stead."""
HEAD = (-1, "head")
EXPERTS, LAST = "mlp.experts.", "mlp.down_proj"
"""What names of watched experts begin with, and the last matrix of a layer."""


class Inputs(Protocol):
    """What a method keeps of the inputs of a matrix; `rows` counts them."""

    rows: int

    def add(self, x_RK: Tensor) -> None: ...


class Calibrated(Protocol):
    """A method that needs inputs."""

    def inputs(self, name: str, cols: int) -> Any:
        """A new, empty record for a matrix of that name and so many columns."""

    def memory(self, watched: Mapping[str, tuple[int, float]]) -> int:
        """Bytes that records and quantising take for one layer. watched: a matrix's name -> (columns, input rows)."""

    def quantize(self, w_NK: Tensor, inputs: Any, fmt: WeightFormat) -> IntegerWeight:
        """The integers of one matrix."""

    def network(self, weights: dict[str, Tensor], inputs: dict[str, Any], fmt: WeightFormat) -> dict[str, Tensor]:
        """The three matrices of a SwiGLU network as they are to be quantised, computing the same as `weights`."""


class Snapshots(Protocol):
    """How far a walk has come, for one that is to go on where it was stopped."""

    def load(self, layers: Sequence[nn.Module], hidden: list[Tensor]) -> int:
        """Gives the number of layers that are done; with their dequantised weights in `layers` and what the last of
        them gave in `hidden`."""

    def save(self, index: int, layer: nn.Module, hidden: Sequence[Tensor]) -> None:
        """Keeps the layer that has just been done, and what it gave."""


Place = tuple[int, str]
"""(layer, name within it), such as (3, "mlp.up_proj"), (3, "mlp.experts.up_proj"), or `HEAD`."""


@dataclass
class Walked:
    """packed: the tensors of each matrix, one per expert in a stack. not_routed: layer -> experts that no token of the
    calibration data went to; those in integer formats were rounded to nearest."""

    packed: dict[Place, list[PackedTensors]] = field(default_factory=dict)
    not_routed: dict[int, list[int]] = field(default_factory=dict)


@torch.no_grad()
def walk(
    model: Any,
    contract: MoteConfig,
    batches: Sequence[Batch],
    method: Calibrated,
    *,
    keep: bool = False,
    precision: Precision = "auto",
    progress: Callable[[int, int], None] | None = None,
    snapshots: Snapshots | None = None,
) -> Walked:
    """Quantises every matrix that `contract` has in an integer format.

    model: float, in eval mode; its weights become the dequantised ones and, unless `keep`, are let go of layer by
    layer. precision: of the forward passes. progress is told (1, layers) after each. snapshots: for a walk that may be
    stopped; of layers that it had done before, the result has nothing. Raises MoteError of the method.
    """
    walker = _Walker(contract, method)
    tied = is_tied(model)
    if integer_codec(contract.head) and tied:
        # The first layer reads the table; it is rounded before, and not for the sake of what the head reads alone.
        walker.to_nearest(HEAD, embedding_of(model), contract.head)
    layers: Any = anatomy(model).decoder.layers
    forward = autocast(model.device, precision)
    with forward:
        hidden, calls = enter(model, layers, batches)
    done = 0 if snapshots is None else snapshots.load(layers, hidden)
    for index, layer in enumerate(layers):
        if index < done:
            continue
        layer.float()
        with walker.watching(layer, index) as sites, forward:
            for _ in through(layer, hidden, calls[index]) if sites else ():
                pass
        walker.quantize(layer, index, sites)
        with forward:
            for batch, out in enumerate(through(layer, hidden, calls[index])):
                hidden[batch] = out
        calls[index] = []
        if snapshots is not None:
            snapshots.save(index, layer, hidden)
        if not keep:
            let_go(layer)
        if progress is not None:
            progress(1, len(layers))
    if integer_codec(contract.head) and not tied:
        walker.head(model, hidden)
    return walker.walked


def walk_memory(model: Any, contract: MoteConfig, batches: Sequence[Batch], method: Calibrated) -> Resident:
    """Memory that `walk` takes beside the model's weights: hidden states of all tokens, and for the layer that takes
    most what the method keeps, and the activations of the largest batch, about four of the widest matrix's inputs."""
    walker = _Walker(contract, method)
    layers: Any = anatomy(model).decoder.layers
    embedding: Any = embedding_of(model)
    sizes = [batch.ids.numel() for batch in batches]
    tokens, working = sum(sizes), 0
    for index, layer in enumerate(layers):
        watched = walker.watched(layer, index)
        share = contract.top_k / contract.num_experts if contract.num_experts else 0.0
        rows = {name: (cols, tokens * (share if name.startswith(EXPERTS) else 1)) for name, cols in watched.items()}
        activations = 4 * 4 * max(sizes, default=0) * max(watched.values(), default=0)
        working = max(working, method.memory(rows) + activations)
    hidden = 4 * tokens * embedding.weight.shape[1]
    return Resident(weights=0, copies=0, cache=0, pictures=0, working=hidden + working)


class _Walker:
    def __init__(self, contract: MoteConfig, method: Calibrated) -> None:
        self._contract, self._method = contract, method
        self.walked = Walked()

    def watched(self, layer: Any, index: int) -> dict[str, int]:
        """Name -> columns of the matrices whose inputs are needed; of experts "mlp.experts.up_proj.<expert>"."""
        found: dict[str, int] = {}
        for name in self._linears(layer, index):
            read = _read_by(name)
            found[read] = layer.get_submodule(read).weight.shape[1]
        experts = self._experts(layer)
        if experts is not None and integer_codec(self._contract.routed):
            for name in ("up_proj", "down_proj"):
                cols = getattr(experts, name).shape[-1]
                found |= {f"{EXPERTS}{name}.{expert}": cols for expert in range(experts.num_experts)}
        return found

    @contextmanager
    def watching(self, layer: Any, index: int) -> "Iterator[dict[str, Any]]":
        """Yields what the matrices of `watched` read inside of the `with`, by name."""
        sites = {name: self._method.inputs(name, cols) for name, cols in self.watched(layer, index).items()}
        handles = [
            layer.get_submodule(name).register_forward_pre_hook(_recorder(inputs))
            for name, inputs in sites.items()
            if not name.startswith(EXPERTS)
        ]
        last = layer.get_submodule(LAST) if LAST in sites else None
        experts = self._experts(layer)
        routed = [0] * (experts.num_experts if experts is not None else 0)
        try:
            if last is not None:  # its inputs are all that is asked for
                last.forward = lambda x: x.new_zeros(*x.shape[:-1], len(last.weight))
            if experts is not None:
                if experts.gain is not None and integer_codec(self._contract.routed):
                    # A packed file has no place for it but the matrix.
                    experts.down_proj.mul_(experts.gain[:, None, None])
                    experts.gain.fill_(1)
                experts.watch = _expert_recorder(sites, routed)
            yield sites
            missed = [expert for expert, rows in enumerate(routed) if not rows]
            if missed and any(routed):
                self.walked.not_routed[index] = missed
        finally:
            for handle in handles:
                handle.remove()
            if last is not None:
                last.__dict__.pop("forward", None)
            if experts is not None:
                experts.watch = None

    def quantize(self, layer: Any, index: int, sites: Mapping[str, Any]) -> None:
        """Quantises the matrices of a layer, and puts the dequantised ones in their places."""
        linears = self._linears(layer, index)
        for name in (f"self_attn.{name}" for name in ATTENTION):
            if fmt := linears.get(name):
                weight = layer.get_submodule(name).weight
                self._store((index, name), weight, self._method.quantize(weight, sites[_read_by(name)], fmt), fmt)
        if fmt := linears.get("mlp.up_proj"):
            weights = {name: layer.get_submodule(f"mlp.{name}").weight for name in MATRICES}
            read = {name: sites[f"mlp.{name}"] for name in ("up_proj", "down_proj")}
            for name, integers in self._network(weights, read, fmt).items():
                self._store((index, f"mlp.{name}"), weights[name], integers, fmt)
        if (experts := self._experts(layer)) is not None and integer_codec(self._contract.routed):
            self._quantize_experts(experts, index, sites)

    def to_nearest(self, place: Place, module: Any, fmt: WeightFormat) -> None:
        """Rounds the matrix of one module to nearest."""
        self._store(place, module.weight, nearest(module.weight, fmt), fmt)

    def head(self, model: Any, hidden: Sequence[Tensor]) -> None:
        """Quantises a head that is not the embedding, by what the last layer gives."""
        parts = anatomy(model)
        norm: Any = parts.decoder.norm
        head: Any = parts.lm_head
        inputs = self._method.inputs("lm_head", head.weight.shape[1])
        for h_BTH in hidden:
            inputs.add(norm.float()(h_BTH).flatten(0, -2))
        fmt = self._contract.head
        self._store(HEAD, head.weight, self._method.quantize(head.weight, inputs, fmt), fmt)

    def _quantize_experts(self, experts: FloatExperts, index: int, sites: Mapping[str, Any]) -> None:
        fmt = self._contract.routed
        for expert in range(experts.num_experts):
            weights = {name: getattr(experts, name)[expert] for name in MATRICES}
            read = {name: sites[f"{EXPERTS}{name}.{expert}"] for name in ("up_proj", "down_proj")}
            if not read["up_proj"].rows:
                quantized = {name: nearest(weight, fmt) for name, weight in weights.items()}
            else:
                quantized = self._network(weights, read, fmt)
            for name, integers in quantized.items():
                self._store((index, f"{EXPERTS}{name}"), weights[name], integers, fmt)

    def _network(self, weights: dict[str, Tensor], read: dict[str, Any], fmt: WeightFormat) -> dict[str, IntegerWeight]:
        weights = self._method.network(weights, read, fmt)
        return {
            name: self._method.quantize(weight, read[READ_ALIKE.get(name, name)], fmt)
            for name, weight in weights.items()
        }

    def _store(self, place: Place, weight: Tensor, integers: IntegerWeight, fmt: WeightFormat) -> None:
        weight.data.copy_(dequantize_integers(integers, fmt))
        self.walked.packed.setdefault(place, []).append(pack_integers(integers, fmt))

    def _linears(self, layer: Any, index: int) -> dict[str, WeightFormat]:
        """Name in the layer -> integer format, of the linears that are to be quantised."""
        found: dict[str, WeightFormat] = {}
        if integer_codec(self._contract.attention):
            found |= {f"self_attn.{name}": self._contract.attention for name in ATTENTION}
        has_network = index not in self._contract.layers or self._contract.shared_expert
        # One that was trained on its grid is on it; it is stored as it is.
        trained = has_network and isinstance(layer.mlp.up_proj, QuantizedLinear)
        if integer_codec(self._contract.shared) and has_network and not trained:
            found |= {f"mlp.{name}": self._contract.shared for name in MATRICES}
        return found

    def _experts(self, layer: Any) -> FloatExperts | None:
        experts = layer.mlp.experts if isinstance(layer.mlp, MoteBlock) else None
        return experts if isinstance(experts, FloatExperts) else None


def _read_by(name: str) -> str:
    """The matrix of the same layer whose inputs are watched for those of `name`."""
    owner, _, last = name.rpartition(".")
    return f"{owner}.{READ_ALIKE.get(last, last)}"


def _recorder(inputs: Inputs) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda module, args: _record(inputs, args[0].detach().flatten(0, -2))


def _expert_recorder(sites: Mapping[str, Inputs], routed: list[int]) -> Callable[[str, Tensor, Sequence[int]], None]:
    """What `FloatExperts.watch` is to be; routed: tokens that each expert was given, counted on."""

    def record(name: str, x_RK: Tensor, offsets: Sequence[int]) -> None:
        for expert in range(len(offsets) - 1):
            if name == "up_proj":
                routed[expert] += offsets[expert + 1] - offsets[expert]
            if inputs := sites.get(f"{EXPERTS}{name}.{expert}"):
                _record(inputs, x_RK[offsets[expert] : offsets[expert + 1]])

    return record


def _record(inputs: Inputs, x_RK: Tensor) -> None:
    # Sums over all tokens: in the bf16 of the pass that is watched they would be of little use.
    with torch.autocast(x_RK.device.type, enabled=False):
        inputs.add(x_RK)
