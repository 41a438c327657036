"""A plan: one choice for one model, in bytes of every kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mote.checkpoint.accounting import GIB, component_bytes, nominal_bits, paper_gib_of, true_ffn_bytes
from mote.checkpoint.contract import OUTSIDE, MoteConfig
from mote.checkpoint.header import PlannedTensor
from mote.checkpoint.planned import planned_tensors, with_sizes
from mote.checkpoint.resident import CONTEXT, Resident, cache_bytes, resident, token_bytes
from mote.checkpoint.writer import planned_files
from mote.errors import MoteError, PlanError
from mote.plan.choice import Choice, storage_bits
from mote.plan.skeleton import Skeleton

On = Literal["paper", "ffn", "file", "resident"]
KINDS: tuple[On, ...] = get_args(On)


@dataclass(frozen=True, kw_only=True)
class Use:
    """How the model is used, which is what memory beside the weights depends on.

    context: tokens whose keys and values are kept, those of pictures among them. images: pictures in them; more than 0
    needs eyes. kv: numbers of the cache. bf16: whether the processor computes in bf16.
    """

    context: int = CONTEXT
    images: int = 1
    kv: str = "bf16"
    bf16: bool = True

    def check(self, skeleton: Skeleton) -> "Use":
        """Itself, without pictures for a model without eyes. Raises PlanError for more tokens than have room."""
        if self.context < 1 or self.images < 0:
            raise PlanError(f"plan: context={self.context}, images={self.images}; use 1 or more tokens, 0 or more")
        if self.kv not in ("bf16", "f32"):
            raise PlanError(f"plan: kv={self.kv!r} is unknown; use bf16 or f32")
        if skeleton.positions and self.context > skeleton.positions:
            raise PlanError(
                f"plan: a context of {self.context} tokens, and the model has {skeleton.positions} positions"
            )
        images = self.images if skeleton.eyes else 0
        if images * skeleton.image_tokens > self.context:
            raise PlanError(
                f"plan: {images} pictures take {images * skeleton.image_tokens} tokens, more than --context "
                f"{self.context}; raise it, or show fewer"
            )
        return Use(context=self.context, images=images, kv=self.kv, bf16=self.bf16)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one choice takes.

    paper_gib: feed-forward networks in the paper's accounting, GiB. ffn_bytes: the same networks as they are stored,
    padding, scales and routers included. file_bytes: the weight files. components: bytes of tensors by part. resident:
    memory while it answers. token_bytes: weights, and keys and values of the whole context, that one token reads.
    """

    model: str
    choice: Choice
    paper_gib: float
    ffn_bytes: int
    file_bytes: int
    components: Mapping[str, int]
    resident: Resident
    token_bytes: int
    token_bits: float

    def bytes(self, on: On) -> int:
        """What a budget on `on` counts."""
        counts: dict[str, float] = {
            "paper": self.paper_gib * GIB,
            "ffn": self.ffn_bytes,
            "file": self.file_bytes,
            "resident": self.resident.total,
        }
        return round(counts[on])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        choice = self.choice
        formats = {name: getattr(choice, name) for name in ("shared", *OUTSIDE, "group")}
        return {
            "model": self.model,
            "title": choice.title(),
            "kind": choice.kind,
            "experts": choice.experts,
            "top_k": choice.top_k,
            "experts_format": choice.experts_format,
            "codec": choice.codec if choice.experts_format == "ternary" and choice.experts else None,
            "layers": list(choice.layers) or None,
            **formats,
            "symmetric": choice.symmetric,
            "paper_gib": self.paper_gib,
            "ffn_bytes": self.ffn_bytes,
            "file_bytes": self.file_bytes,
            "resident_bytes": self.resident.total,
            "components": dict(self.components),
            "resident": self.resident.to_dict(),
            "token_bytes": self.token_bytes,
            "token_bits": self.token_bits,
        }


def measure(skeleton: Skeleton, choice: Choice, use: Use | None = None) -> Plan:
    """The plan of `choice` for a model. Raises FormatError for sizes that a format cannot hold, PlanError for layers or
    tokens that are not there."""
    use = (use or Use()).check(skeleton)
    mote, tensors = _stored(skeleton, choice)
    needs = _resident(skeleton, mote, tensors, use)
    return Plan(
        model=skeleton.name,
        choice=choice,
        paper_gib=paper_gib_of(mote, skeleton.hidden_size, skeleton.ffn_size, skeleton.layers),
        ffn_bytes=true_ffn_bytes(tensors),
        file_bytes=sum(planned_files(tensors).values()),
        components=component_bytes(tensors),
        resident=needs,
        token_bytes=token_bytes(tensors, mote) + cache_bytes(tensors, mote, use.context, use.kv),
        token_bits=token_bits(skeleton, choice, mote),
    )


def count(skeleton: Skeleton, choice: Choice, on: On, use: Use) -> int:
    """`Plan.bytes(on)` of a choice, without the rest of the plan."""
    if on == "paper":
        mote = choice.contract(skeleton.layers)
        return round(paper_gib_of(mote, skeleton.hidden_size, skeleton.ffn_size, skeleton.layers) * GIB)
    mote, tensors = _stored(skeleton, choice)
    if on == "ffn":
        return true_ffn_bytes(tensors)
    if on == "file":
        return sum(planned_files(tensors).values())
    return _resident(skeleton, mote, tensors, use).total


def _stored(skeleton: Skeleton, choice: Choice) -> tuple[MoteConfig | None, list[PlannedTensor]]:
    """The contract, with its sizes, and the tensors of the checkpoint."""
    if choice.layers and choice.layers[-1] >= skeleton.layers:
        raise PlanError(f"plan: layer {choice.layers[-1]} of a model with {skeleton.layers}")
    if choice.tower != "none" and not skeleton.eyes:
        raise PlanError(f"plan: tower={choice.tower}, but {skeleton.name} has no vision tower; leave it out")
    mote = choice.contract(skeleton.layers)
    try:
        if mote is not None:
            mote = with_sizes(mote, {tensor.name: tensor.shape for tensor in skeleton.tensors})
        return mote, planned_tensors(skeleton.tensors, mote)
    except MoteError as error:
        raise type(error)(f"{skeleton.name}: {error}") from None


def _resident(skeleton: Skeleton, mote: MoteConfig | None, tensors: list[PlannedTensor], use: Use) -> Resident:
    return resident(
        *(tensors, mote),
        context=use.context,
        image_tokens=use.images * skeleton.image_tokens,
        kv=use.kv,
        tower_bytes_per_weight=2 if use.bf16 else 4,
        eyes=use.images > 0,
    )


def token_bits(skeleton: Skeleton, choice: Choice, mote: MoteConfig | None) -> float:
    """Mean bits, scales aside, of the weights that one token is multiplied with: shared and chosen routed experts,
    attention, head. A measure of precision, not of quality; the number of experts does not enter it."""
    ffn = 3 * skeleton.hidden_size * skeleton.ffn_size
    mixed = 0 if mote is None else len(mote.layers)
    parts: list[tuple[float, float]] = []
    if mixed and mote is not None:
        parts.append((mixed * ffn * choice.top_k, float(nominal_bits(mote, routed=True))))
        if mote.shared_expert:
            parts.append((mixed * ffn, float(storage_bits(choice.shared))))
    parts.append(((skeleton.layers - mixed) * ffn, float(storage_bits(choice.shared))))
    counts = {"self_attn": 0, "head": 0}
    for tensor in skeleton.tensors:
        if ".self_attn." in tensor.name and tensor.name.endswith("_proj.weight") and len(tensor.shape) == 2:
            counts["self_attn"] += tensor.shape[0] * tensor.shape[1] if "vision" not in tensor.name else 0
        elif tensor.name.endswith("embed_tokens.weight"):
            counts["head"] = tensor.shape[0] * tensor.shape[1]
    parts += [(counts["self_attn"], float(storage_bits(choice.attention)))]
    parts += [(counts["head"], float(storage_bits(choice.head)))]
    weights = sum(count for count, _ in parts)
    return sum(count * bits for count, bits in parts) / weights if weights else 0.0
