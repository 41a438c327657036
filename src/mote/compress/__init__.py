"""Packing, `mote.pack(...)`: routed experts become ternary digits and scales, what else is asked for 4 or 8 bits."""
