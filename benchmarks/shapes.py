"""Shapes that the benchmarks measure: H hidden, F width of the feed-forward, L layers, heads, vocabulary."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One decoder of the Llama family with biases on q, k, v, as Qwen2.5 has."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rope_base: float = 1e6
    eps: float = 1e-6

    @property
    def expert_weights(self) -> int:
        """Weights of one expert, all layers."""
        return 3 * self.hidden * self.ffn * self.layers


_QWEN_VOCAB = 151936
SHAPES = {
    # For trying the scripts out: seconds, no meaning.
    "tiny": Shape(hidden=256, ffn=512, layers=2, heads=4, kv_heads=2, head_dim=64, vocab=1024),
    "0.5b": Shape(hidden=896, ffn=4864, layers=24, heads=14, kv_heads=2, head_dim=64, vocab=_QWEN_VOCAB),
    "1.5b": Shape(hidden=1536, ffn=8960, layers=28, heads=12, kv_heads=2, head_dim=128, vocab=_QWEN_VOCAB),
    "3b": Shape(hidden=2048, ffn=11008, layers=36, heads=16, kv_heads=2, head_dim=128, vocab=_QWEN_VOCAB),
}
"""By the name of the Qwen2.5 model (and "tiny")."""
