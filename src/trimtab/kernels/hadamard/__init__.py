"""Walsh-Hadamard transforms of short blocks of float32."""
