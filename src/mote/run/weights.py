"""A checkpoint as the native decoder reads it: structures of pointers into the mapped files.

Nothing is copied or rearranged but what the decoder wants in fp32 and is small: norms, biases, routers. The order on
disk is the order of the kernels, so that opening costs what reading the headers costs, and the pages of the weights are
the system's own, shared between processes.
"""

import ctypes
import mmap
from ctypes import POINTER, cast
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mote.checkpoint.layout import codec_of
from mote.checkpoint.planned import stated_head
from mote.checkpoint.shards import Checkpoint
from mote.errors import CheckpointError, UnsupportedModelError
from mote.kernels.abi import COMBINES, FORMATS, GRANULARITIES, Decoder, Expert, Ffn, Layer, Matrix
from mote.run.families import FAMILIES, STACKS, Family, head_dim, rope
from mote.ternary.format import WeightFormat

PLAIN = {"BF16": "bf16", "F32": "f32"}
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class Weights:
    """The decoder of an opened checkpoint: `decoder` for the kernels, `embedding` for the look-up of tokens.

    config: the transformers config. kv: "bf16" or "f32", the cache's numbers. bytes: of all matrices, those of routed
    experts in routed_bytes too. Raises CheckpointError for tensors that are missing or of another shape,
    UnsupportedModelError, whose text is a reason only, for what the kernels do not read.
    """

    def __init__(self, checkpoint: Checkpoint, config: Any, *, kv: str = "bf16") -> None:
        self._checkpoint = checkpoint
        self._text = config.get_text_config()
        self._family = FAMILIES[self._text.model_type]
        self._maps: dict[str, NDArray[np.uint8]] = {}
        self._held: list[Any] = []
        self.kv = kv
        self.bytes = self.routed_bytes = 0
        self.top_k = 1
        self.stack = self._stack(self._family)
        text, hidden = self._text, int(self._text.hidden_size)
        self.embedding = self.matrix(f"{self.stack}{self._family.embedding}", int(text.vocab_size), hidden)
        tied = bool(getattr(config, "tie_word_embeddings", False))
        name = stated_head(checkpoint.tensors, checkpoint.root, tied=tied)
        head = self.matrix(name, int(text.vocab_size), hidden) if name else self.embedding
        frequencies, factor = rope(text)
        if frequencies.numel() * 2 != head_dim(text):
            raise UnsupportedModelError("rotary positions that turn a part of each head")
        found = [self._layer(index) for index in range(text.num_hidden_layers)]
        layers = (Layer * len(found))(*found)
        self._held.append(layers)
        self.decoder = Decoder(
            layers=cast(layers, POINTER(Layer)),
            num_layers=len(layers),
            hidden=hidden,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads or text.num_attention_heads,
            head_dim=head_dim(text),
            final_norm=self._floats(f"{self.stack}{self._family.final_norm}", (hidden,)),
            head=head,
            inv_freq=self._keep(frequencies.numpy()),
            rope_factor=factor,
            eps=float(getattr(text, self._family.eps)),
            attention_scale=head_dim(text) ** -0.5,
            kv_format=FORMATS[kv],
        )

    def matrix(self, name: str, rows: int, cols: int) -> Matrix:
        """The matrix `name` [rows, cols] (without ".weight") with its bias, as pointers into the file."""
        bias = self._floats(f"{name}.bias", (rows,)) if f"{name}.bias" in self._checkpoint.tensors else None
        if f"{name}.packed" in self._checkpoint.tensors:
            found = self._packed(f"{name}.", rows, cols, self._format(name))
        else:
            found = self._plain(f"{name}.weight", rows, cols)
        found.bias = bias
        return found

    @property
    def formats(self) -> dict[str, str]:
        """Format of each part: "routed" and "shared" experts, "attention", "head"."""
        layers, names = self.decoder.layers[: self.decoder.num_layers], {n: name for name, n in FORMATS.items()}
        found = {"attention": layers[0].q.format, "head": self.decoder.head.format}
        # A mixture need not be in every layer; where there is one, "shared" is its own.
        for ffn in sorted((layer.ffn for layer in layers), key=lambda ffn: int(ffn.num_experts)):
            if ffn.shared:
                found["shared"] = ffn.shared.contents.gate.format
            if ffn.num_experts:
                found["routed"] = ffn.experts[0].gate.format
        return {part: names[number] for part, number in found.items()}

    @property
    def shape(self) -> dict[str, int]:
        """Hidden size H, width of a feed-forward network F, layers L, routed experts E."""
        ffn_size = int(self._text.intermediate_size)
        return {"H": int(self.decoder.hidden), "F": ffn_size, "L": int(self.decoder.num_layers), "E": self.mixture[1]}

    @property
    def token_bytes(self) -> int:
        """Bytes of the matrices that one token reads when it is decoded: all but the experts that it is not sent to,
        and the embedding, of which it reads one row, unless it is the head."""
        experts = self.mixture[1]
        idle = self.routed_bytes * (experts - self.top_k) // experts if experts else 0
        tied = self.embedding.data == self.decoder.head.data
        scales = self.embedding.scales + self.embedding.zeros
        return int(self.bytes - idle - (0 if tied else self.embedding.bytes + 2 * scales))

    @property
    def mixture(self) -> tuple[tuple[int, ...], int]:
        """(layers with a mixture, routed experts of each)."""
        return ((), 0) if self._mote is None else (tuple(self._mote.layers), int(self._mote.num_experts))

    @property
    def _mote(self) -> Any:
        return self._checkpoint.mote

    def _format(self, name: str) -> WeightFormat:
        """How the packed linear `name` is quantised."""
        kind = "attention" if ".self_attn." in name else "shared" if f".{self._family.ffn}." in name else "head"
        found: WeightFormat = getattr(self._mote, kind)
        return found

    def _stack(self, family: Family) -> str:
        for stack in STACKS:
            if f"{stack}layers.0.{family.input_norm}" in self._checkpoint.tensors:
                return stack
        raise CheckpointError(f"{self._checkpoint.root}: no decoder layers under {', '.join(STACKS)}; fetch it again")

    def _layer(self, index: int) -> Layer:
        text, family, prefix = self._text, self._family, f"{self.stack}layers.{index}."
        hidden, size = int(text.hidden_size), head_dim(text)
        queries = text.num_attention_heads * size
        keys = (text.num_key_value_heads or text.num_attention_heads) * size
        return Layer(
            input_norm=self._floats(prefix + family.input_norm, (hidden,)),
            post_norm=self._floats(prefix + family.post_norm, (hidden,)),
            q_norm=self._floats(prefix + family.q_norm, (size,)) if family.q_norm else None,
            k_norm=self._floats(prefix + family.k_norm, (size,)) if family.k_norm else None,
            q=self.matrix(prefix + family.q, queries, hidden),
            k=self.matrix(prefix + family.k, keys, hidden),
            v=self.matrix(prefix + family.v, keys, hidden),
            o=self.matrix(prefix + family.o, hidden, queries),
            ffn=self._ffn(f"{prefix}{family.ffn}.", index),
        )

    def _ffn(self, prefix: str, index: int) -> Ffn:
        mote = self._mote
        mixed = mote is not None and index in mote.layers
        ffn = Ffn()
        if not mixed or mote.shared_expert:
            matrices = (self.matrix(prefix + name, *self._sizes(name)) for name in PROJECTIONS)
            shared = Expert(*matrices)
            self._held.append(shared)
            ffn.shared = ctypes.pointer(shared)
        if not mixed:
            return ffn
        experts = (Expert * mote.num_experts)(*(self._expert(prefix, i) for i in range(mote.num_experts)))
        self._held.append(experts)
        ffn.experts = cast(experts, POINTER(Expert))
        ffn.router = self._floats(f"{prefix}router.weight", (mote.num_experts, int(self._text.hidden_size)))
        ffn.num_experts, ffn.top_k = mote.num_experts, mote.top_k
        # The gain of "gated" is folded into the scales at packing, so that it adds.
        ffn.combine, ffn.renormalize = (
            COMBINES["convex" if mote.combine == "convex" else "add"],
            int(mote.normalize_gates),
        )
        self.top_k = max(self.top_k, mote.top_k)
        return ffn

    def _expert(self, prefix: str, expert: int) -> Expert:
        routed = self._mote.routed
        if codec_of(self._mote, routed) is None:
            names = {name: f"{prefix}experts.{name}" for name in PROJECTIONS}
            return Expert(*(self._plain(names[name], *self._sizes(name), expert=expert) for name in PROJECTIONS))
        stacks = {name: f"{prefix}experts.{name}_" for name in PROJECTIONS}
        return Expert(*(self._packed(stacks[name], *self._sizes(name), routed, expert=expert) for name in PROJECTIONS))

    def _sizes(self, projection: str) -> tuple[int, int]:
        hidden, ffn = int(self._text.hidden_size), int(self._text.intermediate_size)
        return (hidden, ffn) if projection == "down_proj" else (ffn, hidden)

    def _packed(self, stem: str, rows: int, cols: int, fmt: WeightFormat, expert: int | None = None) -> Matrix:
        """A packed matrix, or one of a stack of them, whose tensors are `stem` and "packed", "scale" and maybe "zero".
        Scales are fp32 for ternary formats, bf16 for integers, as zero points are."""
        codec = codec_of(self._mote, fmt)
        if codec not in FORMATS:
            raise UnsupportedModelError(f"{stem}packed in {fmt.quantizer}, which the kernels do not read")
        data, size, _ = self._part(f"{stem}packed", expert)
        scale, _, scales = self._part(f"{stem}scale", expert)
        zero, _, zeros = (None, 0, 0) if fmt.symmetric else self._part(f"{stem}zero", expert)
        return Matrix(
            data=data,
            bytes=size,
            scale=scale,
            scales=scales,
            rows=rows,
            cols=cols,
            group=fmt.group,
            format=FORMATS[codec],
            granularity=GRANULARITIES[fmt.granularity],
            zero=zero,
            zeros=zeros,
        )

    def _part(self, name: str, expert: int | None = None) -> tuple[int, int, int]:
        """(address, bytes, numbers) of a matrix's tensor, or of one expert's share in that of a stack."""
        info, stack = self._checkpoint.info(name), 1 if expert is None else self._mote.num_experts
        size = info.nbytes // stack
        self.bytes += size
        self.routed_bytes += 0 if expert is None else size
        return self._address(name) + (expert or 0) * size, size, info.numel // stack

    def _plain(self, name: str, rows: int, cols: int, expert: int | None = None) -> Matrix:
        """Floats as they lie, of a matrix or of one of a stack of them."""
        info = self._checkpoint.info(name)
        if info.dtype not in PLAIN:
            raise UnsupportedModelError(f"{name} in {info.dtype}; the kernels read BF16 and F32")
        if info.shape[-2:] != (rows, cols) or len(info.shape) != (2 if expert is None else 3):
            raise CheckpointError(
                f"{self._checkpoint.root}: tensor {name!r} is {list(info.shape)}, config.json asks for {[rows, cols]}"
            )
        data, size, _ = self._part(name, expert)
        return Matrix(data=data, bytes=size, rows=rows, cols=cols, format=FORMATS[PLAIN[info.dtype]])

    def _floats(self, name: str, shape: tuple[int, ...]) -> int:
        """Address of a small tensor as fp32."""
        if self._checkpoint.info(name).shape != shape:
            found = list(self._checkpoint.info(name).shape)
            raise CheckpointError(f"{self._checkpoint.root}: tensor {name!r} is {found}, config.json asks for {shape}")
        return self._keep(self._checkpoint.read(name).float().contiguous().numpy().copy())

    def _keep(self, array: NDArray[Any]) -> int:
        array = np.ascontiguousarray(array, dtype=np.float32)
        self._held.append(array)
        return int(array.ctypes.data)

    def _address(self, name: str) -> int:
        info = self._checkpoint.info(name)
        if info.shard not in self._maps:
            with (self._checkpoint.root / info.shard).open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[info.shard] = np.frombuffer(pages, dtype=np.uint8)
        return int(self._maps[info.shard].ctypes.data) + info.offset
