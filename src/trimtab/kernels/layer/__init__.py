"""A layer of a network in whole numbers, whose sums are exact in any order."""
