"""Random permutations from given draws, as PyTorch makes them."""
