"""Short fixed-length codes for bfloat16 exponents, stored as bit planes, with escapes."""
