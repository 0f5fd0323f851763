"""Floats as 8-bit floats, one or two scales a group: what activations become on the wire."""
