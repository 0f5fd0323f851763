"""A small DLRM (Naumov et al., arXiv 1906.00091) whose tables are divided among ranks, and whose exchange is packed.

    torchrun --nproc-per-node 4 -m examples.dlrm --bound 0.01
    torchrun --nproc-per-node 4 -m examples.dlrm --bound 0.01 --early-factor 2 --early-steps 300
    python -m examples.dlrm --criteo train.txt

Each rank owns some of the embedding tables and has its own samples. It asks the owners for the vectors of its samples,
each id once, and `tt.comm.EmbeddingExchange` brings them within the bound; without ``--bound`` they come as they are.
The rest of the model is the same on all ranks, and its gradients are averaged. Clicks are synthetic
(`examples.clicks`), or Criteo's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import trimtab as tt
from examples.clicks import NUM_DENSE, Batch, CriteoClicks, SyntheticClicks

NUM_ROWS = [4, 18, 105, 340, 1460, 5600, 10_000, 50_000]
"""Rows of the tables of the synthetic set."""


def mlp(*sizes: int) -> nn.Sequential:
    """Return linear layers of these sizes with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class DLRM(nn.Module):
    """The part that every rank has: a click's logit from dense features and one vector for each categorical feature."""

    def __init__(self, num_tables: int, num_columns: int = 32) -> None:
        super().__init__()
        self.bottom = mlp(NUM_DENSE, 64, num_columns)
        num_pairs = (num_tables + 1) * num_tables // 2
        self.top = mlp(num_columns + num_pairs, 128, 64, 1)
        self._pairs = torch.tril_indices(num_tables + 1, num_tables + 1, offset=-1)

    def forward(self, dense: torch.Tensor, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return logits [n] for dense features [n, 13] and the vectors [n, columns] of each table."""
        x = self.bottom(dense)
        all_vectors = torch.stack([x, *vectors], dim=1)
        products = all_vectors @ all_vectors.transpose(1, 2)
        return self.top(torch.cat([x, products[:, self._pairs[0], self._pairs[1]]], dim=1)).squeeze(1)


def make_table(num_rows: int, num_columns: int, generator: torch.Generator) -> nn.Embedding:
    """Return a table as DLRM starts it: uniform within 1 / sqrt(rows) of zero."""
    weights = torch.empty(num_rows, num_columns).uniform_(-(num_rows**-0.5), num_rows**-0.5, generator=generator)
    return nn.Embedding.from_pretrained(weights, freeze=False, sparse=True)


class DividedTables(nn.Module):
    """The tables of this rank, and how to look up in those of all ranks. Table t belongs to rank t % world_size."""

    def __init__(
        self, num_rows: Sequence[int], num_columns: int, exchange: tt.comm.EmbeddingExchange, seed: int
    ) -> None:
        super().__init__()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.owners = [table % self.size for table in range(len(num_rows))]
        self.exchange = exchange(self.owners, num_columns)
        generators = [torch.Generator().manual_seed(seed * 1000 + table) for table in range(len(num_rows))]
        self.tables = nn.ModuleList(
            make_table(num_rows[table], num_columns, generators[table]) for table in self.exchange.own_tables
        )

    def forward(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Return the vectors [n, columns] of each table for ids [tables, n], of which each is asked for once."""
        asked, places = zip(*(torch.unique(column, return_inverse=True) for column in ids), strict=True)
        # what each owner is asked for: first how many ids of each of its tables, then the ids
        by_owner = [[t for t, owner in enumerate(self.owners) if owner == rank] for rank in range(self.size)]
        own, counts = by_owner[self.rank], [column.numel() for column in asked]
        wanted = self._swap([torch.tensor([counts[t] for t in tables]) for tables in by_owner], [len(own)] * self.size)
        sent = [torch.cat([torch.empty(0, dtype=torch.int64), *(asked[t] for t in tables)]) for tables in by_owner]
        received = self._swap(sent, [int(rows.sum()) for rows in wanted])
        parts = [ids.split(rows.tolist()) for ids, rows in zip(received, wanted, strict=True)]
        looked_up = [table(torch.cat([part[k] for part in parts])) for k, table in enumerate(self.tables)]
        vectors = self.exchange(looked_up, [[int(rows[k]) for rows in wanted] for k in range(len(own))], counts)
        return [x[place] for x, place in zip(vectors, places, strict=True)]

    def _swap(self, numbers: list[torch.Tensor], sizes: list[int]) -> tuple[torch.Tensor, ...]:
        """Send int64 numbers to each rank, and return what came from each, of known sizes."""
        received = torch.empty(sum(sizes), dtype=torch.int64)
        dist.all_to_all_single(received, torch.cat(numbers), sizes, [part.numel() for part in numbers])
        return received.split(sizes)


def average_gradients(model: nn.Module) -> None:
    """Average the gradients of all ranks."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(joined)
    joined /= dist.get_world_size()
    for gradient, part in zip(gradients, joined.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def make_optimizers(parts: Sequence[nn.Module], rate: float) -> list[torch.optim.Optimizer]:
    """Return an optimizer for each part that has parameters: a rank may own no table."""
    return [torch.optim.Adagrad(part.parameters(), lr=rate) for part in parts if any(True for _ in part.parameters())]


def learn(model: DLRM, tables: DividedTables, optimizers: Sequence[torch.optim.Optimizer], batch: Batch) -> float:
    """Take a step on the samples of this rank, and return their mean loss."""
    logits = model(torch.from_numpy(batch.dense), tables(torch.from_numpy(batch.ids)))
    loss = nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(batch.clicks))
    loss.backward()
    average_gradients(model)
    for parameter in tables.parameters():  # gradients come from all ranks, and each has the mean over its own samples
        if parameter.grad is not None:
            parameter.grad = parameter.grad / tables.size
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def area_under_curve(scores: np.ndarray, clicks: np.ndarray) -> float:
    """Return the chance that a click has a higher score than a sample without; equal scores count half."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    num_clicks = int(clicks.sum())
    return float(
        (ranks[clicks > 0].sum() - num_clicks * (num_clicks + 1) / 2) / num_clicks / (clicks.size - num_clicks)
    )


def evaluate(
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    clicks: SyntheticClicks | CriteoClicks,
    num_batches: int,
) -> float:
    """Return the area under the curve on test batches of 4096; every rank scores all of them."""
    scores, truth = [], []
    with torch.no_grad():
        for index in range(num_batches):
            batch = clicks.batch("test", index, 4096)
            scores.append(score(torch.from_numpy(batch.dense), torch.from_numpy(batch.ids)).numpy())
            truth.append(batch.clicks)
    return area_under_curve(np.concatenate(scores), np.concatenate(truth))


def train(options: argparse.Namespace) -> float:
    """Train as the command line says, tell how it goes on rank 0, and return the area under the curve."""
    rank, size = dist.get_rank(), dist.get_world_size()
    if options.criteo:
        clicks = CriteoClicks(options.criteo, [options.criteo_rows] * 26)
    else:
        clicks = SyntheticClicks(NUM_ROWS, seed=options.seed)
    exchange = tt.comm.EmbeddingExchange(
        bound=tt.Abs(options.bound) if options.bound else tt.Lossless(),
        backward_bound=tt.Abs(options.backward_bound) if options.backward_bound else tt.Lossless(),
        early_factor=options.early_factor,
        early_steps=options.early_steps,
        bandwidth=options.bandwidth,
    )
    torch.manual_seed(options.seed)
    model = DLRM(len(clicks.num_rows), options.columns)
    tables = DividedTables(clicks.num_rows, options.columns, exchange, options.seed)
    optimizers = make_optimizers([model, tables], options.rate)
    seconds = []
    for step in range(options.steps):
        begin = time.perf_counter()
        loss = learn(model, tables, optimizers, clicks.batch("train", step * size + rank, options.samples))
        seconds.append(time.perf_counter() - begin)
        if rank == 0 and (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss:.4f}, {1e3 * np.median(seconds[-50:]):.1f} ms a step", flush=True)
    area = evaluate(lambda dense, ids: model(dense, tables(ids)).sigmoid(), clicks, options.test_batches)
    if rank == 0:
        print(f"area under the curve {area:.5f}")
        print(tables.exchange)
    return area


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example; started by torchrun, with all its ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bound", type=float, help="absolute error of every element of a vector (default: none)")
    parser.add_argument("--backward-bound", type=float, help="the same of gradients (default: none)")
    parser.add_argument("--early-factor", type=float, default=1.0, help="how much looser the bound is at first")
    parser.add_argument("--early-steps", type=int, default=0, help="how long it takes to reach the bound")
    parser.add_argument("--bandwidth", type=float, default=12.5e6, help="of the link of a rank, bytes a second")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=2048, help="a step and rank")
    parser.add_argument("--columns", type=int, default=32, help="elements of a vector")
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate of Adagrad")
    parser.add_argument("--test-batches", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--criteo", type=Path, help="a file of Criteo's click logs, in place of synthetic clicks")
    parser.add_argument("--criteo-rows", type=int, default=100_000, help="rows of each of its tables")
    options = parser.parse_args(argv)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        os.environ.setdefault(name, value)
    dist.init_process_group("gloo")
    try:
        train(options)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
