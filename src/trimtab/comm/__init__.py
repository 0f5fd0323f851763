"""Collectives that send a fraction of the bytes, and the laboratory that shows on which links this pays."""
