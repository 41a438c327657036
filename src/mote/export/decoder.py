"""What an export needs to know of a checkpoint's language model, and why one may have no equivalent elsewhere.

Llama-like decoders only: pre-norm, rotary positions over whole heads, grouped-query attention, SwiGLU. A family is in
`FAMILIES` when stock engines compute it without a constant of its own (Granite's and Gemma's factors on embeddings and
logits, for instance, have no place in them); and a decoder layer that holds any tensor that is not in `LAYER` is
refused by that tensor's name, so that nothing is left out silently.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mote.checkpoint.contract import MoteConfig
from mote.checkpoint.layout import decoder_prefixes, ffn_sizes
from mote.checkpoint.planned import stated_head
from mote.checkpoint.shards import Checkpoint
from mote.checkpoint.verify import check_hashes
from mote.errors import CheckpointError, UnsupportedModelError
from mote.export.matrices import Matrices, Stored
from mote.model.families import ACTIVATIONS
from mote.model.opening import open_config

FAMILIES = ("llama", "mistral", "qwen2")
ROPES = ("default", "linear")
LAYER = re.compile(
    r"(input_layernorm|post_attention_layernorm)\.weight|self_attn\.([qkv]_proj\.(weight|bias|packed|scale|zero)"
    r"|o_proj\.(weight|packed|scale|zero))|mlp\.(gate|up|down)_proj\.(weight|packed|scale|zero)|mlp\.router\.weight"
    r"|mlp\.experts\.((gate|up|down)_proj(_packed|_scale|_zero)?|gain)"
    r"|self_attn\.rotary_emb\.inv_freq"  # a constant that old checkpoints keep
)
"""Names inside a decoder layer that every export knows."""
SWIGLU = ("gate", "up", "down")
"""The matrices of a network, without the "_proj" of their names."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The language model of `checkpoint`, which has a mixture in at least one layer.

    text: its own transformers config. prefixes: of the layers, with a trailing dot. head: module name, or "" where the
    embedding is the head. sizes: H hidden, F width of every network, V vocabulary, head_dim, heads, kv_heads.
    """

    checkpoint: Checkpoint
    mote: MoteConfig
    text: Any
    config: Any
    prefixes: tuple[str, ...]
    head: str
    matrices: Matrices
    hidden: int
    ffn: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def stack(self) -> str:
        """What the names of embedding and final norm start with ("model.language_model.")."""
        return self.prefixes[0].removesuffix("layers.0.")

    @property
    def embedding(self) -> str:
        """Module name of the table of tokens."""
        return f"{self.stack}embed_tokens"

    def attention(self, prefix: str) -> Iterator[tuple[str, str, Stored]]:
        """("q", module, what is stored) for q, k, v and o of the layer at `prefix`."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for short, rows, cols in (("q", query, self.hidden), ("k", keys, self.hidden), ("v", keys, self.hidden)):
            module = f"{prefix}self_attn.{short}_proj"
            yield short, module, self.matrices.stored(module, rows, cols)
        module = f"{prefix}self_attn.o_proj"
        yield "o", module, self.matrices.stored(module, self.hidden, query)

    def size(self, projection: str) -> tuple[int, int]:
        """(N, K) of "gate", "up" or "down"."""
        return (self.hidden, self.ffn) if projection == "down" else (self.ffn, self.hidden)

    def mixed(self, layer: int) -> bool:
        """Whether a layer holds a mixture."""
        return layer in self.mote.layers


def open_decoder(directory: str, *, hashes: bool = True) -> Decoder:
    """Opens the packed or up-cycled checkpoint in `directory`, and checks its bytes against mote.json if `hashes`.

    Raises CheckpointError (damaged, altered, dense) or UnsupportedModelError, which says what has no equivalent.
    """
    checkpoint = Checkpoint.open(directory)
    root, mote = checkpoint.root, checkpoint.mote
    if mote is None or not mote.layers:
        raise CheckpointError(
            f"{root}: is dense; export takes packed or up-cycled checkpoints, llama.cpp's own convert_hf_to_gguf.py "
            "and transformers take this one"
        )
    if hashes and (problems := check_hashes(checkpoint)[0]):
        raise CheckpointError(problems[0])
    config = open_config(checkpoint)
    text = config.get_text_config()
    prefixes = decoder_prefixes(checkpoint.tensors)
    if reason := _why_not(checkpoint, text, mote, prefixes):
        raise UnsupportedModelError(f"{root}: {reason}")
    first = f"{prefixes[min(mote.layers)]}mlp."
    hidden, ffn = ffn_sizes(mote, checkpoint.config, checkpoint.tensors, first)
    return Decoder(
        checkpoint=checkpoint,
        mote=mote,
        text=text,
        config=config,
        prefixes=tuple(prefixes.values()),
        head=stated_head(checkpoint.tensors, root, tied=bool(getattr(config, "tie_word_embeddings", False))),
        matrices=Matrices(checkpoint, mote),
        hidden=hidden,
        ffn=ffn,
        vocab=int(text.vocab_size),
        heads=int(text.num_attention_heads),
        kv_heads=int(text.num_key_value_heads or text.num_attention_heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads),
    )


def _why_not(checkpoint: Checkpoint, text: Any, mote: MoteConfig, prefixes: dict[int, str]) -> str:
    """What stock engines have no equivalent of, or ""."""
    if text.model_type not in FAMILIES:
        return f"language model {text.model_type!r} has no export; {', '.join(FAMILIES)} have one"
    if mote.combine == "convex":
        return (
            "combine 'convex' weights the shared expert by 1 - p, which no stock engine computes; use 'add' or 'gated'"
        )
    if not mote.shared_expert:
        return "the mixture has no shared expert, which the stock architectures want"
    if text.hidden_act not in ACTIVATIONS:
        return f"activation {text.hidden_act!r} in the feed-forward networks, not SwiGLU"
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if kinds - {"full_attention"} or (not kinds and window is not None):
        return "attention in sliding windows, which the stock architectures lack"
    rope = text.rope_parameters
    if rope.get("rope_type", "default") not in ROPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return (
            f"rotary positions of type {rope.get('rope_type')!r}; export knows {' and '.join(ROPES)} over whole heads"
        )
    if sorted(prefixes) != list(range(int(text.num_hidden_layers))):
        return f"config.json says {text.num_hidden_layers} layers, the tensors' names show {len(prefixes)}"
    for name in checkpoint.tensors:
        prefix = next((p for p in prefixes.values() if name.startswith(p)), None)
        if prefix is not None and not LAYER.fullmatch(name.removeprefix(prefix)):
            return f"{name} has no place in the stock architectures"
    return ""
