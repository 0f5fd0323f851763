"""What one rank of `bench.embedding` does: steps of the DLRM over a shaped link, exact and packed exchanges by turns.

Started by `bench.embedding_runs` in a netlab, with the ranks' environment variables set.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from bench import rank
from bench.embedding_runs import NUM_TURN_STEPS, NUM_WARM_UP
from bench.embedding_training import NUM_COLUMNS, NUM_SAMPLES, RATE
from bench.embedding_ways import STEP_WAYS
from bench.turns import take_turns
from examples.clicks import SyntheticClicks
from examples.dlrm import DLRM, NUM_ROWS, DividedTables, learn, make_optimizers
from trimtab.bounds import Lossless
from trimtab.comm.embedding import EmbeddingExchange, TableExchange
from trimtab.comm.netlab import parse_rate
from trimtab.comm.topology import Topology


class Trainer:
    """One model for all ways, whose exchange is swapped; it tells how long a way waits for exchanges."""

    def __init__(self, bandwidth: float) -> None:
        torch.manual_seed(0)
        self._clicks = SyntheticClicks(NUM_ROWS, seed=0)
        self._model = DLRM(len(NUM_ROWS), NUM_COLUMNS)
        self._tables = DividedTables(NUM_ROWS, NUM_COLUMNS, EmbeddingExchange(bound=Lossless()), seed=0)
        self._optimizers = make_optimizers([self._model, self._tables], RATE)
        topology, owners = Topology(), self._tables.owners
        self._waited = 0.0
        self.exchanges = {way: make(bandwidth)(owners, NUM_COLUMNS, topology) for way, make in STEP_WAYS.items()}
        self.seconds_waited: dict[str, list[float]] = {way: [] for way in STEP_WAYS}
        """Of each step of a way."""
        for exchange in self.exchanges.values():
            self._watch(exchange)
        self._num_steps = 0

    def step(self, way: str) -> None:
        """Train for one step."""
        self._tables.exchange, self._waited = self.exchanges[way], 0.0
        index = self._num_steps * dist.get_world_size() + dist.get_rank()
        learn(self._model, self._tables, self._optimizers, self._clicks.batch("train", index, NUM_SAMPLES))
        self._num_steps += 1
        self.seconds_waited[way].append(self._waited)

    def _watch(self, exchange: TableExchange) -> None:
        swap = exchange.swap

        def watched(*arguments: Any) -> None:
            start = time.perf_counter()
            swap(*arguments)
            self._waited += time.perf_counter() - start

        exchange.swap = watched


def steps(bandwidth: float, num_rounds: int) -> dict[str, Any]:
    """Train by turns; return seconds a step, the exchange's share of them, and what the exchanges counted."""
    trainer = Trainer(bandwidth)
    ways = {way: lambda way=way: trainer.step(way) for way in STEP_WAYS}
    turns = take_turns(ways, num_rounds, NUM_TURN_STEPS, NUM_WARM_UP)
    shares = {}
    for way, waited in trainer.seconds_waited.items():
        of_turns = [sum(waited[k : k + NUM_TURN_STEPS]) for k in range(NUM_WARM_UP, len(waited), NUM_TURN_STEPS)]
        shares[way] = [
            seconds / NUM_TURN_STEPS / turn.seconds for seconds, turn in zip(of_turns, turns[way], strict=True)
        ]
    return {
        "seconds": {way: [turn.seconds for turn in turns[way]] for way in ways},
        "shares": shares,
        "sizes": {way: trainer.exchanges[way].report["operations"]["all_to_all"] for way in ways},
    }


def main() -> None:
    """Do what the command line says."""
    parser = rank.parser("bench.embedding_ranks", __doc__)
    parser.add_argument("--rate", type=parse_rate, required=True, help="of the link")
    args = parser.parse_args()
    rank.work(args.out, lambda: steps(args.rate / 8, args.rounds))


if __name__ == "__main__":
    main()
