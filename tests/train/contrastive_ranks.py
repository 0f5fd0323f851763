"""What one rank of the tests of FastCLIP does: ``python -m tests.train.contrastive_ranks WHAT FOLDER``."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.dist.launch import join
from tests.train.objective import SCALE, VERSIONS, Towers, features, order, reference, relative, samples
from trimtab.errors import NotFinite, SettingsDiffer, UsageError
from trimtab.train import FastCLIP, accumulate

NUM = 22


def own(counts: list[int]) -> slice:
    """Which rows are this rank's."""
    start = sum(counts[: dist.get_rank()])
    return slice(start, start + counts[dist.get_rank()])


def everywhere(x: Tensor) -> Tensor:
    """Return what all ranks have, a row each."""
    found = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(found, x.detach().contiguous())
    return torch.stack(found)


def step(loss: FastCLIP, counts: list[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    """Return the loss, and the mean over ranks of the gradients of images, texts and logit scale."""
    whole = [x.to(dtype).requires_grad_() for x in features(sum(counts))]
    scale = torch.tensor(SCALE, dtype=dtype, requires_grad=True)
    rows, index = own(counts), torch.randperm(100, generator=torch.Generator().manual_seed(1))
    value = loss(whole[0][rows], whole[1][rows], scale, index[: sum(counts)][rows])
    value.backward()
    return value.detach(), [everywhere(x.grad).mean(0) for x in (*whole, scale)]


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
                assert abs(value.item() / expected - 1) < limit, (version, counts, dtype, value, expected)
                assert (everywhere(value) == value).all()
                for x, y in zip(found, wanted, strict=True):
                    assert relative(x, y) < limit, (version, counts, dtype, relative(x, y))


def data_parallel() -> None:
    """Ranks train like one process on all of their samples, and have the same tables, over epochs with gamma < 1."""
    size = dist.get_world_size()
    images, texts = samples(30, torch.float64)
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    for version in VERSIONS:
        runs = []
        for group in (None, alone):
            model = Towers(dtype=torch.float64)
            if group is None:
                model = DistributedDataParallel(model)
            loss = FastCLIP(samples=30, version=version, gamma_min=0.4, decay_epochs=2, group=group)
            optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
            values = []
            for epoch in range(3):
                loss.set_epoch(epoch)
                for index in order(30, epoch, 8):  # the last has 6
                    mine = index if group else index.tensor_split(size)[dist.get_rank()]
                    value = loss(*model(images[mine], texts[mine]), mine)
                    value.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    values.append(value.item())
            runs.append((torch.tensor(values), loss.state_dict()))
        (values, tables), (expected, others) = runs
        assert relative(values, expected) < 1e-6
        for name in sorted(tables.keys() - {"_extra_state"}):
            assert (everywhere(tables[name]) == tables[name]).all(), name
            torch.testing.assert_close(tables[name], others[name], rtol=1e-4, atol=1e-4)


def accumulated() -> None:
    """Parts under DistributedDataParallel equal the whole batch."""
    size, rank = dist.get_world_size(), dist.get_rank()
    images, texts = samples(12 * size, torch.float64)
    rows = slice(12 * rank, 12 * rank + 12)
    index = torch.arange(12 * size)[rows]
    found = []
    for sizes in ([12], [5, 4, 3]):
        model = DistributedDataParallel(Towers(dtype=torch.float64))
        loss = FastCLIP(samples=100, version="v3")
        parts = list(zip(images[rows].split(sizes), texts[rows].split(sizes), strict=True))
        accumulate(loss, model, parts, index)
        found.append([x.grad for x in model.parameters()])
        assert all((everywhere(x) == x).all() for x in found[-1])
    assert all(relative(x, y) < 1e-12 for x, y in zip(*found, strict=True))


def raised(call: Callable[[], object], error: type[Exception], *words: str) -> None:
    """Check that a call raises, and what it says."""
    try:
        call()
    except error as caught:
        assert all(word in str(caught) for word in words), str(caught)
    else:
        raise AssertionError(f"{error} was not raised: {words}")


def state() -> None:
    """What one rank saved is loaded by all; another number of ranks is told."""
    counts = splits()[1]
    first = FastCLIP(samples=100, version="v2")
    step(first, counts)
    box = [first.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box)
    second = FastCLIP(samples=100, version="v2")
    second.load_state_dict(box[0])
    for loss in (first, second):
        loss.set_epoch(1)
    found = [step(loss, counts) for loss in (first, second)]
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(x, y) for x, y in zip(found[0][1], found[1][1], strict=True))
    assert torch.equal(first.temperatures, second.temperatures)
    size = dist.get_world_size()
    box[0]["_extra_state"]["world_size"] = size + 1
    raised(lambda: second.load_state_dict(box[0]), UsageError, f"saved by {size + 1} ranks, here are {size}")


def faults() -> None:
    """What is wrong on one rank is raised on all, at once, and nothing is lost: the next step goes on."""
    size, rank = dist.get_world_size(), dist.get_rank()
    last = rank == size - 1
    loss = FastCLIP(samples=100, version="v2")
    counts = splits()[0]
    step(loss, counts)
    before = {name: table.clone() for name, table in loss.state_dict().items() if name != "_extra_state"}
    images, texts = (x[own(counts)].float() for x in features(sum(counts)))
    index = torch.arange(100)[own(counts)]
    bad = images.clone()
    bad[1, 2] = math.nan
    far = torch.where(index == index[0], 100, index)
    same = torch.where(index == index[0], 5, index)
    cases = [
        (
            NotFinite,
            (bad if last else images, texts, None, index),
            f"rank {size - 1}: image_features have NaN",
            "row 1",
        ),
        (UsageError, (images, texts, None, far if last else index), f"rank {size - 1}: index 100 is out of range"),
        (UsageError, (images, texts, None, same if last else index), "index 5 is repeated"),
        (UsageError, (images[:2] if last else images, texts, None, index), f"rank {size - 1}: features have shapes"),
        (UsageError, (bad, texts[1:], None, index), "rank 0: features", f"; rank {size - 1}: features"),
        (UsageError, (images[: int(last)], texts[: int(last)], None, index[: int(last)]), "have 1 samples"),
        (
            SettingsDiffer,
            tuple(x.double() if last and x.is_floating_point() else x for x in (images, texts)),
            "float64",
        ),
    ]
    for error, arguments, *words in cases:
        if len(arguments) == 2:
            arguments = (*arguments, None, index)
        raised(lambda arguments=arguments: loss(*arguments), error, *words)
    loss.set_epoch(int(last))
    raised(lambda: loss(images, texts, None, index), SettingsDiffer, "rank 0 has training in epoch 0", "in epoch 1")
    loss.set_epoch(1)
    assert all(torch.equal(table, loss.state_dict()[name]) for name, table in before.items())
    step(loss, counts)
    assert loss.steps == 2


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
