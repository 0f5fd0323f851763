"""Floats as packed integers of 2 to 8 bits, one scale a group: what gradients and weights become on the wire."""
