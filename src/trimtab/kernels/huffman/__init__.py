"""Huffman coding of bytes: canonical codes of at most 11 bits, eight streams side by side."""
