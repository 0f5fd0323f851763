"""Entropy coding of small tokens that stand in rows: tabled asymmetric numeral systems with contexts."""
