"""MoTE: mixtures of ternary experts for memory-efficient multimodal models (arXiv 2506.14435)."""

__version__ = "0.1.0"
