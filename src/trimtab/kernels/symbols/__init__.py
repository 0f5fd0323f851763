"""Unsigned integers as one byte each for an entropy coder, low bits that are not coded, and a list of large ones."""
