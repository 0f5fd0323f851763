"""Contexts for the tokens of a pyramid: how large a token will be, from those of the neighbours on all sides."""
