"""What one rank of `bench.contrastive_wire` does: steps of each loss on features alone, and the bytes that they sent.

The peers exchange what open_clip's losses do: OpenCLIP gathers the features of all ranks with gradients
(``local_loss``, ``gather_with_grad``), SigLIP passes the texts round the ranks (one way), and their gradients back.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F  # noqa: N812

from trimtab.comm import counters
from trimtab.train import FastCLIP

NUM_WARM_UP = 3
SCALE, BIAS = 14.25, -10.0


def open_clip(image: Tensor, text: Tensor) -> Tensor:
    """Return the loss of this rank's rows, against the features of all ranks."""
    images, texts = (torch.cat(list(all_gather(x))) for x in (image, text))
    own = torch.arange(len(image)) + dist.get_rank() * len(image)
    return (F.cross_entropy(SCALE * image @ texts.T, own) + F.cross_entropy(SCALE * text @ images.T, own)) / 2


class _PassOn(torch.autograd.Function):
    """Send to the next rank, return what the one before sends; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _shift(x, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _shift(gradients[0], -1)


def _shift(x: Tensor, places: int) -> Tensor:
    rank, size = dist.get_rank(), dist.get_world_size()
    x, received = x.contiguous(), torch.empty_like(x)
    send = dist.P2POp(dist.isend, x, (rank + places) % size)
    for work in dist.batch_isend_irecv([send, dist.P2POp(dist.irecv, received, (rank - places) % size)]):
        work.wait()
    return received


def sig_lip(image: Tensor, text: Tensor) -> Tensor:
    """Return the loss of this rank's images, against the texts of all ranks in turn."""
    signs = 2 * torch.eye(len(image)) - 1
    total = torch.zeros(())
    for number in range(dist.get_world_size()):
        if number:
            text, signs = _PassOn.apply(text), torch.tensor(-1.0)
        total = total - F.logsigmoid(signs * (SCALE * image @ text.T + BIAS)).sum() / len(image)
    return total


def fast_clip(version: Any, num_samples: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return FastCLIP's loss of this rank's samples."""
    loss = FastCLIP(samples=num_samples * dist.get_world_size(), version=version, gamma_min=1)
    index = torch.arange(num_samples) + dist.get_rank() * num_samples
    return lambda image, text: loss(image, text, SCALE, index)


def losses(num_samples: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return all losses by name."""
    ours = {f"FastCLIP {version}": fast_clip(version, num_samples) for version in ("v1", "v2", "v3")}
    return {"OpenCLIP": open_clip, "SigLIP": sig_lip, **ours}


def make_features(num_samples: int, num_columns: int, rank: int) -> list[Tensor]:
    """Return images and texts of a rank."""
    generator = torch.Generator().manual_seed(rank)
    return [F.normalize(torch.randn(num_samples, num_columns, generator=generator)) for _ in range(2)]


def step(loss: Callable[[Tensor, Tensor], Tensor], features: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients by images and texts."""
    inputs = [x.clone().requires_grad_() for x in features]
    loss(*inputs).backward()
    return [x.grad for x in inputs if x.grad is not None]


def sent(num_samples: int, num_columns: int, num_steps: int) -> dict[str, float]:
    """Return the bytes that all ranks sent a step, for each loss, headers and acknowledgements included."""
    features = make_features(num_samples, num_columns, dist.get_rank())
    found = {}
    for name, loss in losses(num_samples).items():
        for number in range(NUM_WARM_UP + num_steps):
            if number == NUM_WARM_UP:
                dist.barrier()
                before = counters.read()
            step(loss, features)
        dist.barrier()
        total = torch.tensor((counters.read() - before).sent_bytes / num_steps, dtype=torch.float64)
        dist.all_reduce(total)
        found[name] = total.item()
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Count for every number of samples a rank and of columns, and write what came of it on rank 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.contrastive_wire_ranks", description=__doc__)
    parser.add_argument("--sizes", nargs="+", required=True, help="samples a rank and columns, such as 64x512")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {size: sent(*map(int, size.split("x")), given.steps) for size in given.sizes}
    if dist.get_rank() == 0:
        given.out.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
