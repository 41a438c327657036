"""`quantization_config` of a MoTE checkpoint: everything that is needed to decode its tensors.

It lives in `config.json`, because a side file is lost by `save_pretrained`. Lineage, which nothing needs for
decoding, is in `mote.json` (see `lineage`).
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from mote.errors import CheckpointError, FormatError
from mote.ternary.format import FULL_PRECISION, WeightFormat, integer_codec

FORMAT_VERSION = 1
QUANT_METHOD = "mote"
MODEL_TYPE = "mote_lmm"
"""`model_type` in config.json; the wrapped model's own type stands in `base_model_type`."""

State = Literal["dense", "upcycled", "packed"]
Combine = Literal["add", "convex", "gated"]
CodecName = Literal["base3", "2bit"]
OUTSIDE = ("attention", "head", "tower")
"""Classes outside of the feed-forward networks: in full precision unless packing is asked for them."""
CLASSES = ("routed", "shared", *OUTSIDE)
"""Keys that are number formats, each of one class of matrices."""
SIZES = (
    *("hidden_size", "ffn_size", "query_size", "key_value_size", "vocab_size"),
    *("tower_hidden_size", "tower_ffn_size"),
)
"""Keys that state unpadded sizes, which packed tensors do not tell."""


@dataclass(frozen=True, kw_only=True)
class MoteConfig:
    """Settings of every MoTE (or MoE-LLaVA) block of a model, and how its tensors are stored.

    state: "upcycled" (float master weights of the routed experts) or "packed". A "dense" model has
        no such config.
    layers: indices of the decoder layers that hold a mixture, ascending.
    num_experts, top_k, normalize_gates: routed experts N, experts per token, and whether the chosen gates are
        renormalised to sum to 1 (the paper's top-1: no; MoE-LLaVA's top-2: yes).
    shared_expert: whether the pretrained FFN stays as an always-on expert beside the routed ones.
    train_shared: whether stage III trains the shared expert (the paper: no).
    combine: "add" y = S + p R, "convex" y = (1 - p) S + p R, "gated" y = S + p g R with a learnable gain g
        per expert that starts at 0 and folds into the down scale at packing.
    routed, shared: number formats of the routed experts' and the shared expert's matrices. An `integer_codec` format of
        `shared` in a packed model is also that of the FFNs in layers without a mixture.
    attention, head, tower: number formats of the projections q, k, v, o, of the language model's head (with a tied
        embedding, of the one table that is both), and of the matrices in the vision tower's layers: full precision, or
        an `integer_codec` format in a packed model.
    codec: packed layout of the ternary matrices; None where there are none, or state is not "packed".
    balance_coefficient: weight of the load-balancing loss (Switch), summed over layers.
    hidden_size, ffn_size: H and F of the FFNs, without which packed tensors cannot be decoded; 0 where a
        float shared expert or the float experts tell them.
    query_size, key_value_size, vocab_size: rows of q (columns of o), rows of k and of v, rows of the head; stated where
        these are packed, else 0.
    tower_hidden_size, tower_ffn_size: hidden size of the vision tower and width of its networks, likewise.

    A dense model whose matrices are packed has state "packed", no layers, no experts (num_experts = top_k = 0).
    """

    state: State = "upcycled"
    layers: tuple[int, ...] = ()
    num_experts: int = 4
    top_k: int = 1
    normalize_gates: bool = False
    shared_expert: bool = True
    train_shared: bool = False
    combine: Combine = "add"
    routed: WeightFormat = field(default_factory=WeightFormat)
    shared: WeightFormat = FULL_PRECISION
    attention: WeightFormat = FULL_PRECISION
    head: WeightFormat = FULL_PRECISION
    tower: WeightFormat = FULL_PRECISION
    codec: CodecName | None = None
    balance_coefficient: float = 0.01
    hidden_size: int = 0
    ffn_size: int = 0
    query_size: int = 0
    key_value_size: int = 0
    vocab_size: int = 0
    tower_hidden_size: int = 0
    tower_ffn_size: int = 0
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise CheckpointError(
                f"quantization_config: format_version {self.format_version} is not {FORMAT_VERSION}, "
                "the only one this version of mote reads; install the mote that wrote the checkpoint"
            )
        for name in ("num_experts", "top_k", *SIZES):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise FormatError(f"quantization_config: {name}={value!r} is not a whole number >= 0")
        for name in ("normalize_gates", "shared_expert", "train_shared"):
            if not isinstance(getattr(self, name), bool):
                raise FormatError(f"quantization_config: {name}={getattr(self, name)!r} is not true or false")
        coefficient = self.balance_coefficient
        if not isinstance(coefficient, int | float) or not 0 <= coefficient < float("inf"):
            raise FormatError(f"balance_coefficient={coefficient!r} is not a finite number, 0 or more")
        if not all(isinstance(layer, int) and layer >= 0 for layer in self.layers):
            raise FormatError(f"quantization_config: layers {self.layers} are not indices of decoder layers")
        dense = self.state == "packed" and not self.layers and self.num_experts == self.top_k == 0
        if not dense and not 1 <= self.top_k <= self.num_experts:
            raise FormatError(f"top_k={self.top_k} of num_experts={self.num_experts}: choose between 1 expert and all")
        for name, value, allowed in (
            ("state", self.state, ("upcycled", "packed")),
            ("combine", self.combine, ("add", "convex", "gated")),
            ("codec", self.codec, (None, "base3", "2bit")),
        ):
            if value not in allowed:
                raise FormatError(f"quantization_config: {name}={value!r} is unknown; use one of {allowed}")
        mixture = self.state == "packed" and not dense
        ternary = any(fmt.quantizer in ("ternary", "binary") for fmt in (self.routed, self.shared))
        if self.codec is None and mixture and ternary:
            raise FormatError("quantization_config: ternary matrices in a packed model, but codec is null")
        if self.codec is not None and not mixture:
            raise FormatError(f"quantization_config: codec={self.codec!r} with state={self.state!r} and no mixture")
        if tuple(sorted(set(self.layers))) != tuple(self.layers):
            raise FormatError(f"quantization_config: layers {self.layers} are not ascending and unique")
        for name in OUTSIDE:
            fmt = getattr(self, name)
            if fmt.quantizer != "none" and (self.state != "packed" or integer_codec(fmt) is None):
                raise FormatError(
                    f"quantization_config: {name} in {fmt.quantizer}, state {self.state!r}; only a packed model has it "
                    "quantised, to integers with scales per group and int8_group activations"
                )
        if self.combine != "add" and not self.shared_expert:
            raise FormatError(f"combine={self.combine!r} needs the shared expert; use combine='add' without one")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as it stands in config.json; `from_dict` is its inverse."""
        plain = asdict(self)
        plain["layers"] = list(self.layers)
        for name in CLASSES:
            if plain[name]["symmetric"]:  # which it is where the key is absent, as in files of before it existed
                del plain[name]["symmetric"]
        return {"quant_method": QUANT_METHOD, **plain}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "MoteConfig":
        """Inverse of `to_dict`. Raises CheckpointError on an unknown key, FormatError on a bad value."""
        plain = dict(plain)
        method = plain.pop("quant_method", QUANT_METHOD)
        if method != QUANT_METHOD:
            raise CheckpointError(f"quantization_config: quant_method is {method!r}, not {QUANT_METHOD!r}")
        unknown = plain.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise CheckpointError(f"quantization_config: unknown keys {sorted(unknown)}; written by a newer mote?")
        try:
            for name in CLASSES:
                if name in plain:
                    plain[name] = WeightFormat(**plain[name])
            plain["layers"] = tuple(plain.get("layers", ()))
            return cls(**plain)
        except TypeError as error:
            raise CheckpointError(f"quantization_config: {error}") from None
