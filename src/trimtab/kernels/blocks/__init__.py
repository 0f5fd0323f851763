"""Floats within an absolute error bound, in blocks of bit planes; zeros and signs stay exact."""
