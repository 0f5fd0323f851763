"""XXH3-64 digests of many pieces of equal size, as checksums are made over."""
