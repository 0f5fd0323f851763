"""Fletcher's checksum of 32 bits, as HDF5's filter makes it."""
