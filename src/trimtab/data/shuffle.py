"""The order of the samples in every epoch, the same that torch.utils.data.DistributedSampler draws.

It is a function of the seed alone, so it is known before training starts, for every epoch and on every rank.
PyTorch is not needed: its generator on the CPU is a Mersenne Twister, which NumPy has too.
"""

from __future__ import annotations

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.errors import UsageError

MOST_SAMPLES = 2**32 // 20
"""torch.randperm draws differently from there on."""


def permutation(num_samples: int, seed: int) -> np.ndarray:
    """Return what ``torch.randperm`` returns with a generator that was seeded with `seed`, as int32[num_samples]."""
    bits = np.random.MT19937()
    np.random.RandomState(bits).seed(seed & 0xFFFFFFFF)  # sets the state of `bits` as torch does
    samples = np.empty(num_samples, np.int32)
    kernels.load("permutation").shuffle(bits.random_raw(num_samples), samples)
    return samples


class Shuffle(msgspec.Struct, frozen=True, kw_only=True):
    """The global batches of every epoch: those of a DistributedSampler with this seed, under a DataLoader on each rank.

    With `drop_last` (of both) an epoch has ``num_samples // (num_ranks * batch_size)`` steps and leaves out the
    samples behind them. Without it, the last batch may be smaller, and up to ``num_ranks - 1`` samples of the epoch's
    beginning are repeated at its end, so that all ranks take equally many.

    The batch of step t is ``samples[t * G : (t + 1) * G]`` with ``G = num_ranks * batch_size``, however many ranks
    share it, but for the repeated samples.
    """

    num_samples: int
    num_ranks: int = 1
    batch_size: int = 1
    """Samples that a rank takes in a step."""
    seed: int = 0
    drop_last: bool = False

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_ranks", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_samples >= MOST_SAMPLES:
            raise UsageError(f"num_samples must be less than {MOST_SAMPLES}, got {self.num_samples}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be from 0 to 2^63 - 1, got {self.seed}")
        if self.drop_last and self.global_batch > self.num_samples:
            raise UsageError(
                f"a step of {self.num_ranks} ranks takes {self.global_batch} samples, and there are "
                f"{self.num_samples}: with drop_last nothing is left"
            )
        if self.global_batch >= 2**31:
            raise UsageError(f"a step takes {self.global_batch} samples; at most 2^31 - 1 are planned")

    @property
    def global_batch(self) -> int:
        """Samples that all ranks take in a step."""
        return self.num_ranks * self.batch_size

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return len(self.sizes)

    @property
    def sizes(self) -> np.ndarray:
        """Samples that each rank takes in each step, int32[num_steps]: `batch_size`, but maybe in the last."""
        if self.drop_last:
            return np.full(self.num_samples // self.global_batch, self.batch_size, np.int32)
        each = -(-self.num_samples // self.num_ranks)
        sizes = np.full(-(-each // self.batch_size), self.batch_size, np.int32)
        sizes[-1] = each - self.batch_size * (len(sizes) - 1)
        return sizes

    @property
    def offsets(self) -> np.ndarray:
        """Where the steps of an epoch begin, and the last one ends, int64[num_steps + 1]."""
        return np.concatenate([[0], np.cumsum(self.num_ranks * self.sizes.astype(np.int64))])

    def samples(self, epoch: int) -> np.ndarray:
        """Return the samples of an epoch in order, int32: also those that are repeated, or dropped by `drop_last`."""
        drawn = permutation(self.num_samples, self.seed + epoch)
        if self.drop_last or (missing := -self.num_samples % self.num_ranks) == 0:
            return drawn
        return np.concatenate([drawn, np.resize(drawn, missing)])
