"""Caches replayed over a known sequence of uses: which samples they hold, and what is read anew."""
