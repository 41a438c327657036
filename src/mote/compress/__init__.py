"""Packing, `mote.pack(...)`, and quantising, `mote.quantize(...)`.

Routed experts become ternary digits and scales, what else is asked for integers of 2 to 8 bits.
"""
