"""What one rank does for `bench.sharded`: train from a seed and tell the losses, or take turns and tell the times.

Started by `bench.sharded_runs` in a netlab, with the ranks' environment variables set.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn

from bench import gpt, rank
from bench.sharded_runs import NUM_WARM_UP, SCALES, Scale
from bench.sharded_ways import WAYS
from bench.turns import take_turns

NUM_CURVE_POINTS = 10


class Trainer:
    """A model on its way from a seed: AdamW, clipped gradients, a rate that warms up and falls as a cosine."""

    def __init__(self, way: str, scale: Scale, seed: int) -> None:
        self.scale, self.seed = scale, seed
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.text = gpt.library()
        self.model = WAYS[way].make(gpt.make(scale.size, seed), seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.num_steps = 0

    def step(self) -> Tensor:
        """Train for one step, and return the loss of this rank's rows before it."""
        rows = {"seed": self.seed, "step": self.num_steps, "rank": self.rank, "world_size": self.world_size}
        loss = gpt.loss(self.model, *self.text.batch(self.scale.size, self.scale.num_rows, **rows))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.scale.learning_rate * gpt.share_of_rate(self.num_steps, self.scale.num_steps, 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1
        return loss.detach()

    @torch.no_grad()
    def validate(self, num_rows: int) -> float:
        """Return the loss on rows of the validation text, the same on all ranks."""
        tokens, targets = self.text.held_out(self.scale.size, num_rows)
        mine = slice(self.rank, None, self.world_size)
        total = torch.zeros((), dtype=torch.float64)
        parts = (part[mine].split(self.scale.num_rows) for part in (tokens, targets))
        for part in zip(*parts, strict=True):
            total += gpt.loss(self.model, *part).double() * len(part[0])
        dist.all_reduce(total)
        return total.item() / num_rows


class Digests:
    """A digest a step of the gathered parameters that a sharded model computes with."""

    def __init__(self, model: nn.Module) -> None:
        self.found: list[int] = []
        for module in (*model.blocks, model):
            module.register_forward_pre_hook(self._add)  # behind FSDP's own, which gathers
        self._root = model
        self._state = xxhash.xxh3_64()

    def _add(self, module: nn.Module, _: Any) -> None:
        parameters = module.parameters(recurse=module is not self._root)
        for parameter in parameters:
            # of a copy: memory that NumPy has seen cannot be freed as FSDP does
            self._state.update(parameter.detach().view(-1).view(torch.uint8).clone().numpy())

    def end_step(self) -> None:
        """Keep the digest of what was computed with since the step before."""
        self.found.append(self._state.intdigest())
        self._state.reset()

    def identical(self) -> bool:
        """Return whether all ranks had the same parameters at every step."""
        words = torch.tensor([digest >> 1 for digest in self.found])
        least, most = words.clone(), words.clone()
        dist.all_reduce(least, dist.ReduceOp.MIN)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return bool((least == most).all())


def losses(way: str, scale: Scale, seed: int, num_steps: int) -> dict[str, Any]:
    """Train for `num_steps` of the scale's steps; return losses, and the digests of parameters."""
    trainer = Trainer(way, scale, seed)
    digests = Digests(trainer.model)
    curve, train = [], []
    every = max(scale.num_steps // NUM_CURVE_POINTS, 1)
    begun = time.perf_counter()
    for step in range(1, num_steps + 1):
        loss = trainer.step()
        digests.end_step()
        if step % every == 0:
            dist.all_reduce(loss)
            train.append((step, loss.item() / trainer.world_size))
            curve.append((step, trainer.validate(scale.num_curve_rows)))
            digests.end_step()
    return {
        "validation": trainer.validate(scale.num_held_out),
        "curve": curve,
        "train": train,
        "digests": [f"{digest:016x}" for digest in digests.found],
        "identical": digests.identical(),
        "seconds": time.perf_counter() - begun,
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "text": trainer.text.source,
        "text_bytes": [len(trainer.text.train), len(trainer.text.validation)],
    }


def steps(ways: list[str], scale: Scale, num_rounds: int, num_steps: int) -> dict[str, Any]:
    """Train in several ways by turns of `num_steps`; return seconds a step, and bytes a step of each node."""
    trainers = {way: Trainer(way, scale, 0).step for way in ways}
    turns = take_turns(trainers, num_rounds, num_steps, NUM_WARM_UP)
    return {
        "seconds": {way: [turn.seconds for turn in turns[way]] for way in ways},
        "sent": {way: [_by_node(turn.sent_bytes) for turn in turns[way]] for way in ways},
    }


def _by_node(num_bytes: float) -> list[float]:
    """Return what every node's first rank counted."""
    counts = torch.zeros(dist.get_world_size(), dtype=torch.float64)
    counts[dist.get_rank()] = num_bytes
    dist.all_reduce(counts)
    return counts[:: int(os.environ["LOCAL_WORLD_SIZE"])].tolist()


def main() -> None:
    """Do what the command line says."""
    args = rank.training_parser("bench.sharded_ranks", __doc__, SCALES, WAYS).parse_args()
    scale = SCALES[args.scale]
    jobs = {
        "losses": lambda: losses(args.ways[0], scale, args.seed, args.steps),
        "steps": lambda: steps(args.ways, scale, args.rounds, args.steps),
    }
    rank.work(args.out, jobs[args.job])


if __name__ == "__main__":
    main()
