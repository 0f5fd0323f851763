"""LZF streams, as h5py's filter makes them."""
