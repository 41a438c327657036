"""Packing: the routed experts' master weights become ternary digits and scales, `mote.pack(...)`."""
