"""What one rank of the test of the contrastive peers does: ``python -m tests.bench.contrastive_ranks FOLDER``."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn import functional as F  # noqa: N812

from bench.contrastive_wire_ranks import BIAS, SCALE, losses, make_features, step
from tests.dist.launch import join

NUM = 6


def whole() -> dict[str, list[torch.Tensor]]:
    """The gradients of the peers' losses on all samples, in one process."""
    ranks = [make_features(NUM, 16, rank) for rank in range(dist.get_world_size())]
    features = [torch.cat(side) for side in zip(*ranks, strict=True)]
    own = torch.arange(len(features[0]))

    def open_clip(image, text):
        logits = SCALE * image @ text.T
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    def sig_lip(image, text):
        signs = 2 * torch.eye(len(image)) - 1
        return -F.logsigmoid(signs * (SCALE * image @ text.T + BIAS)).sum() / len(image)

    return {"OpenCLIP": step(open_clip, features), "SigLIP": step(sig_lip, features)}


def main() -> None:
    join("peers", sys.argv[1])
    rows = slice(NUM * dist.get_rank(), NUM * (dist.get_rank() + 1))
    found = {name: step(loss, make_features(NUM, 16, dist.get_rank())) for name, loss in losses(NUM).items()}
    for name, gradients in whole().items():
        for x, y in zip(found[name], gradients, strict=True):
            torch.testing.assert_close(x / dist.get_world_size(), y[rows], rtol=1e-4, atol=1e-6)
    assert list(found) == ["OpenCLIP", "SigLIP", "FastCLIP v1", "FastCLIP v2", "FastCLIP v3"]


if __name__ == "__main__":
    main()
