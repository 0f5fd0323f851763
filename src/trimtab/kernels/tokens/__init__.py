"""Integers as byte tokens and raw extra bits: what stands between a predictor and an entropy coder."""
