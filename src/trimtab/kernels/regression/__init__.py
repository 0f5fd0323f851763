"""Vectors on a grid predicted from those before, in whole numbers."""
