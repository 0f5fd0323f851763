"""Looked-up vectors: quantised under an error bound, told apart by rows, and packed to few bits an element."""
