"""What one rank of the tests of FastCLIP does: ``python -m tests.train.contrastive_ranks WHAT FOLDER``."""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor

from tests.dist.launch import join, leave
from tests.train.objective import SCALE, VERSIONS, features, reference, relative
from trimtab.train import FastCLIP

NUM = 22


def share(counts: list[int]) -> slice:
    """Which rows are this rank's."""
    start = sum(counts[: dist.get_rank()])
    return slice(start, start + counts[dist.get_rank()])


def mean_over_ranks(x: Tensor) -> Tensor:
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def step(loss: FastCLIP, counts: list[int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Return the loss, and the mean over ranks of the gradients of images, texts and logit scale."""
    whole = [x.to(dtype).requires_grad_() for x in features(sum(counts), seed)]
    scale = torch.tensor(SCALE, dtype=dtype, requires_grad=True)
    mine, index = share(counts), torch.randperm(100, generator=torch.Generator().manual_seed(seed))
    value = loss(whole[0][mine], whole[1][mine], scale, index[: sum(counts)][mine])
    value.backward()
    return value.detach(), [mean_over_ranks(x.grad) for x in (*whole, scale)]


def splits() -> list[list[int]]:
    """Even and uneven numbers of samples a rank, a rank without any among them."""
    size = dist.get_world_size()
    even, last = [NUM // size] * size, [NUM // size] * (size - 1) + [3]
    return [even, last, [*[4] * (size - 1), 0]] if size > 1 else [even]


def gradients() -> None:
    """The mean gradient is that of the objective over the whole batch, at gamma = 1 and eps = 0."""
    for version in VERSIONS:
        for counts in splits():
            for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
                loss = FastCLIP(samples=100, version=version, eps=0, gamma_min=1)
                value, found = step(loss, counts, dtype)
                expected, wanted = reference(*features(sum(counts)), version, rho=loss.rho)
                assert abs(float(value) / expected - 1) < limit, (version, counts, dtype, value, expected)
                for x, y in zip(found, wanted, strict=True):
                    assert relative(x, y) < limit, (version, counts, dtype, relative(x, y))


def main() -> None:
    what, folder = sys.argv[1], sys.argv[2]
    for name in what.split("+"):
        join(name, folder)
        begun = time.perf_counter()
        globals()[name]()
        print(f"{name}: {time.perf_counter() - begun:.2f} s")
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
    leave()
