"""A rank that loads data: ``python -m tests.data.loader_ranks FOLDER RANKS_PER_NODE EPOCH STEP``."""

from __future__ import annotations

import itertools
import sys
from collections import Counter

import torch.distributed as dist

from tests.data.numbered import Numbered, check
from tests.dist.launch import join
from trimtab.data import SOLAR, Tally
from trimtab.data.tally import tallies

NUM_SAMPLES, GLOBAL_BATCH, NUM_EPOCHS = 480, 32, 4


def main(folder: str, per_node: int, start: tuple[int, int]) -> None:
    """Hold all samples, so that ranks must lend, and compare what all ranks get with the shuffle."""
    join("loader", folder)
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    store = Numbered(NUM_SAMPLES, width=600)
    loader = SOLAR(
        store, GLOBAL_BATCH // num_ranks, NUM_EPOCHS, "140%", ranks_per_node=per_node, job=folder, timeout=60
    )
    assert loader.plan.num_ranks == num_ranks
    assert loader.rank == rank
    loader.load_state_dict(loader.state_dict() | {"epoch": start[0], "step": start[1]})
    shuffle, num_steps = loader.plan.shuffle, 0
    for epoch in range(start[0], NUM_EPOCHS):
        loader.set_epoch(epoch)
        for batch in loader:
            check(batch, loader.samples)
            found: list = [None] * num_ranks
            dist.all_gather_object(found, loader.samples.tolist())
            theirs = shuffle.samples(epoch)[shuffle.offsets[loader.step] : shuffle.offsets[loader.step + 1]]
            assert Counter(itertools.chain.from_iterable(found)) == Counter(theirs.tolist())
            num_steps += 1
    assert num_steps == (NUM_EPOCHS - start[0]) * len(loader) - start[1]
    counts: list = [None] * num_ranks
    dist.all_gather_object(counts, store.reads)
    planned = sum(tallies(loader.plan), Tally())
    assert planned.num_sent > 0
    reads = sum(counts, Counter())
    if start == (0, 0):
        assert reads.total() == planned.num_reads == NUM_SAMPLES
    else:
        assert set(reads.values()) == {1}
    loader.close()
    print("loaded")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), (int(sys.argv[3]), int(sys.argv[4])))
