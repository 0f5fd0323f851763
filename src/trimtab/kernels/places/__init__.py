"""Indices that point into small windows, such as those of pooling by the maximum, as places in the window."""
