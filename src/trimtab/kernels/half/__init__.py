"""Floats of two bytes, as NumPy and ml_dtypes hold them, to float32 and back."""
