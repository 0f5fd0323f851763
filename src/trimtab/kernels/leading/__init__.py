"""Floats split into their leading bits, as symbols for an entropy coder, and the trailing ones."""
