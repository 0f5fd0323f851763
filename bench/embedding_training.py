"""Training of a small DLRM as four ranks would do it, in one process: what `bench.embedding` scores.

The vectors that a rank would ask for, each id once, are packed for it and unpacked by the code that sends them, and so
are the gradients that it would send back: bytes are those of the real payloads. Every slice is packed, also the quarter
that a rank would send to itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from bench.embedding_ways import Rounding, exact
from examples.clicks import SyntheticClicks
from examples.dlrm import DLRM, NUM_ROWS, evaluate, make_optimizers, make_table
from trimtab.bounds import Abs, Lossless, Rel
from trimtab.comm.embedding import EmbeddingExchange
from trimtab.comm.embedding_tables import Part, Tables, unpack

NUM_RANKS, NUM_SAMPLES, NUM_COLUMNS = 4, 2048, 32
NUM_TEST_BATCHES, RATE = 25, 0.02


class Message(NamedTuple):
    """What one rank sends to another of one table."""

    table: int
    sender: int
    receiver: int
    x: np.ndarray


Coder = Callable[[int, Sequence[Message]], tuple[int, list[np.ndarray]]]
"""From a step and all messages: the bytes that they take, and what comes of each."""


def rounded(by: Rounding) -> Coder:
    """Return a coder that rounds every message by itself."""

    def code(_step: int, messages: Sequence[Message]) -> tuple[int, list[np.ndarray]]:
        sizes, back = zip(*(by(message.x) for message in messages), strict=True)
        return sum(sizes), list(back)

    return code


def packed(settings: EmbeddingExchange, bound: Abs | Rel | Lossless) -> Coder:
    """Return a coder that packs as the exchange does in a direction."""
    if isinstance(bound, Lossless):
        return rounded(exact)
    ranks = [Tables(settings, bound, len(NUM_ROWS)) for _ in range(NUM_RANKS)]

    def code(step: int, messages: Sequence[Message]) -> tuple[int, list[np.ndarray]]:
        sent = [[(k, m) for k, m in enumerate(messages) if m.sender == rank] for rank in range(NUM_RANKS)]
        parts = [[Part(m.table, m.receiver, m.x) for _, m in own] for own in sent]
        ranges = None
        if isinstance(bound, Rel):
            ranges = np.max([tables.ranges(own) for tables, own in zip(ranks, parts, strict=True)], axis=0)
        back, num_bytes = [np.empty_like(message.x) for message in messages], 0
        for tables, own, numbered in zip(ranks, parts, sent, strict=True):
            if tables.due(step):
                tables.choose(step, own, ranges)
            for receiver, payload in enumerate(tables.pack(step, own, NUM_RANKS, ranges)):
                unpack(payload, [back[k] for k, message in numbered if message.receiver == receiver])
                num_bytes += payload.size
        return num_bytes, back

    return code


class _Returned(torch.autograd.Function):
    """The vectors as they are; their gradients as they come back."""

    @staticmethod
    def forward(ctx, code, *vectors):
        ctx.code = code
        return tuple(x.view_as(x) for x in vectors)

    @staticmethod
    def backward(ctx, *gradients):
        return None, *ctx.code(gradients)


class Training:
    """The DLRM and its tables, in the hands of four ranks that are simulated.

    Args:
        way: One of `bench.embedding_ways.WAYS`.
        seed: Of the clicks and of the first weights.
    """

    def __init__(self, way: Rounding | EmbeddingExchange, seed: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.clicks = SyntheticClicks(NUM_ROWS, seed=seed)
        self.model = DLRM(len(NUM_ROWS), NUM_COLUMNS)
        generators = [torch.Generator().manual_seed(seed * 1000 + table) for table in range(len(NUM_ROWS))]
        self.tables = nn.ModuleList(
            make_table(num, NUM_COLUMNS, g) for num, g in zip(NUM_ROWS, generators, strict=True)
        )
        self._optimizers = make_optimizers([self.model, self.tables], RATE)
        if isinstance(way, EmbeddingExchange):
            self._codes = packed(way, way.bound), packed(way, way.backward_bound)
        else:
            self._codes = rounded(way), rounded(exact)
        self.step = 0
        self.num_bytes = self.num_distinct_bytes = self.num_sent = self.num_returned = 0

    def look_up(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Return the vectors of each table as the ranks get them; rounding is straight-through."""
        asked = [
            (table, rank, *torch.unique(part, return_inverse=True))
            for table, column in enumerate(ids)
            for rank, part in enumerate(column.split(NUM_SAMPLES))
        ]
        routes = [(table, table % NUM_RANKS, rank % NUM_RANKS) for table, rank, *_ in asked]

        def come_back(gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            messages = [
                Message(table, rank, owner, gradient.numpy())
                for (table, owner, rank), gradient in zip(routes, gradients, strict=True)
            ]
            sent, back = self._codes[1](self.step, messages)
            self.num_returned += sent
            return [torch.from_numpy(y) for y in back]

        looked_up = _Returned.apply(come_back, *(self.tables[table](wanted) for table, _, wanted, _ in asked))
        messages = [Message(*route, x.detach().numpy()) for route, x in zip(routes, looked_up, strict=True)]
        sent, back = self._codes[0](self.step, messages)
        self.num_bytes += ids.numel() * NUM_COLUMNS * 4
        self.num_distinct_bytes += sum(message.x.nbytes for message in messages)
        self.num_sent += sent
        vectors = [x + (torch.from_numpy(y) - x.detach()) for x, y in zip(looked_up, back, strict=True)]
        spread = [x[places] for x, (*_, places) in zip(vectors, asked, strict=True)]
        each = len(spread) // len(NUM_ROWS)
        return [torch.cat(spread[k * each : (k + 1) * each]) for k in range(len(NUM_ROWS))]

    def learn(self) -> None:
        """Take a step on the samples of all ranks."""
        batch = self.clicks.batch("train", self.step, NUM_RANKS * NUM_SAMPLES)
        logits = self.model(torch.from_numpy(batch.dense), self.look_up(torch.from_numpy(batch.ids)))
        nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.clicks)).backward()
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1


def train(
    way: Rounding | EmbeddingExchange, seed: int, num_steps: int, num_test_batches: int = NUM_TEST_BATCHES
) -> dict[str, Any]:
    """Train with vectors that are sent in a way; return the area under the curve, and bytes.

    `num_bytes` are those of the vectors as they are, one a sample and table, `num_distinct_bytes` of those that are
    asked for, each id once a rank and table; `num_sent` is what these take, and `num_returned` what their gradients do.
    """
    start = time.perf_counter()
    training = Training(way, seed)
    for _ in range(num_steps):
        training.learn()
    names = ("num_bytes", "num_distinct_bytes", "num_sent", "num_returned")
    sizes = {name: getattr(training, name) for name in names}

    def score(dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return training.model(dense, training.look_up(ids))

    area = evaluate(score, training.clicks, num_test_batches)
    return {"area": area, **sizes, "seconds": time.perf_counter() - start}
