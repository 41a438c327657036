"""The MoTE block and where it sits: families, router, routed experts, routing statistics, the transformers plug-in."""
