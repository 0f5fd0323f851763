"""Random permutations from given draws, the specification.

The samples start in order. For i = 0, 1, ..., the sample at place i changes places with the one at ``i + draws[i] % (n
- i)`` (Fisher and Yates). With the 32-bit draws of a Mersenne Twister this is `torch.randperm` on the CPU, for fewer
than 2^32 / 20 samples.
"""

from __future__ import annotations

import numpy as np


def shuffle(draws: np.ndarray, samples: np.ndarray) -> None:
    """Write the permutation of ``range(n)`` that `draws` (uint64[n]) make to `samples` (int32[n])."""
    num = len(samples)
    samples[:] = np.arange(num)
    for i in range(num):
        other = i + int(draws[i]) % (num - i)
        samples[[i, other]] = samples[[other, i]]
