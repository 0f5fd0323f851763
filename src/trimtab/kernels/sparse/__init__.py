"""Integers of which most are zero, coded in adaptive contexts: where the others stand, and what they are."""
