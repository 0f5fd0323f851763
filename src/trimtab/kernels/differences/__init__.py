"""Differences of two arrays of numbers, block by block, without the blocks that are equal."""
