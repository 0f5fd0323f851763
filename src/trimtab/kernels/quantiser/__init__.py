"""Uniform and logarithmic quantisation of floating-point rows, with the bound checked on the decoder's own result."""
