"""Runs of zero tokens as symbols of their own, so that a Huffman code does not take a bit for every zero."""
