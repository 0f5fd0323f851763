"""What one rank of `bench.embedding` does: steps of the DLRM over a shaped link, exact and packed exchanges by turns.

Started by `bench.embedding_runs` inside a netlab; rank 0 writes what it timed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from bench.embedding_runs import NUM_TURN_STEPS, NUM_WARM_UP
from bench.embedding_training import NUM_COLUMNS, NUM_SAMPLES, RATE
from bench.embedding_ways import STEP_WAYS
from examples.clicks import SyntheticClicks
from examples.dlrm import DLRM, NUM_ROWS, DividedTables, learn, make_optimizers
from trimtab.bounds import Lossless
from trimtab.comm.embedding import EmbeddingExchange
from trimtab.comm.netlab import parse_rate
from trimtab.comm.topology import Topology


def main(argv: Sequence[str] | None = None) -> None:
    """Time the steps, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=parse_rate, required=True, help="of the link")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    topology = Topology()
    clicks = SyntheticClicks(NUM_ROWS, seed=0)
    torch.manual_seed(0)
    model = DLRM(len(NUM_ROWS), NUM_COLUMNS)
    tables = DividedTables(NUM_ROWS, NUM_COLUMNS, EmbeddingExchange(bound=Lossless()), seed=0)
    optimizers = make_optimizers([model, tables], RATE)
    exchanges = {way: make(given.rate / 8)(tables.owners, NUM_COLUMNS, topology) for way, make in STEP_WAYS.items()}
    waited = [0.0]
    for attached in exchanges.values():
        attached.swap = _timed(attached.swap, waited)
    seconds: dict[str, list[float]] = {way: [] for way in STEP_WAYS}
    shares: dict[str, list[float]] = {way: [] for way in STEP_WAYS}
    index = 0
    for number in range(-1, given.rounds):
        for way in random.Random(number).sample(list(STEP_WAYS), len(STEP_WAYS)):
            tables.exchange = exchanges["exact" if number < 0 and index < NUM_WARM_UP else way]
            num_steps = NUM_WARM_UP if number < 0 and index == 0 else NUM_TURN_STEPS
            dist.barrier()
            waited[0], start = 0.0, time.perf_counter()
            for _ in range(num_steps):
                learn(model, tables, optimizers, clicks.batch("train", index * size + rank, NUM_SAMPLES))
                index += 1
            dist.barrier()
            taken = time.perf_counter() - start
            if number >= 0:
                seconds[way].append(taken / num_steps)
                shares[way].append(waited[0] / taken)
    if rank == 0:
        sizes = {way: attached.report["operations"]["all_to_all"] for way, attached in exchanges.items()}
        given.out.write_text(json.dumps({"seconds": seconds, "shares": shares, "sizes": sizes}))
    dist.destroy_process_group()


def _timed(swap, waited):
    """Count the seconds that a rank spends in an exchange."""

    def timed(*arguments):
        start = time.perf_counter()
        swap(*arguments)
        waited[0] += time.perf_counter() - start

    return timed


if __name__ == "__main__":
    main()
