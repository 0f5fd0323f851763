"""Exponents in two widths, packed by halving, as ENEC was published."""
