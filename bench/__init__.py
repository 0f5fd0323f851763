"""Benchmarks: trimtab beside named peers, as Records. Run one with ``python -m bench.lossless``."""
