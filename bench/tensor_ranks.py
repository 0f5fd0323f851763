"""What one rank does for `bench.tensor_parallel`: train and tell the losses, or take turns and tell the times.

Started by `bench.tensor_runs` in a netlab, with the ranks' environment variables set.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from bench import gpt, rank
from bench.tensor_runs import SCALES, Scale
from bench.tensor_ways import WAYS
from bench.turns import Turn, take_turns
from trimtab.comm import counters


class Trainer:
    """A model on its way from a seed: AdamW, a rate that warms up and falls as a cosine."""

    def __init__(self, way: str, scale: Scale, seed: int) -> None:
        self.scale, self.seed, self.num_steps = scale, seed, 0
        self.text = gpt.library()
        self.model = gpt.make(scale.size, seed)
        self.plan, mesh = WAYS[way].apply(self.model)
        self.copy, self.num_copies = mesh.get_local_rank("data"), WAYS[way].num_copies
        # some parameters are DTensors and some are not, which the fused and the foreach way do not take
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, foreach=False)

    def step(self) -> Tensor:
        """Train for one step, and return the loss before it, of this copy's rows."""
        share = {"rank": self.copy, "world_size": self.num_copies}
        num_rows = self.scale.num_rows // self.num_copies
        rows = self.text.batch(self.scale.size, num_rows, seed=self.seed, step=self.num_steps, **share)
        loss = gpt.loss(self.model, *rows)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.scale.learning_rate * gpt.share_of_rate(self.num_steps, self.scale.num_steps, 0.05)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1
        return loss.detach()

    @torch.no_grad()
    def validate(self) -> float:
        """Return the loss on rows of the validation text."""
        parts = (
            part.split(self.scale.num_rows) for part in self.text.held_out(self.scale.size, self.scale.num_held_out)
        )
        total = sum(gpt.loss(self.model, *part).item() * len(part[0]) for part in zip(*parts, strict=True))
        return total / self.scale.num_held_out

    @torch.no_grad()
    def identical(self) -> bool:
        """Return whether all ranks get the same bits from the whole model."""
        tokens, _ = self.text.held_out(self.scale.size, 1)
        digest = xxhash.xxh3_64_intdigest(self.model(tokens).contiguous().view(torch.uint8).numpy()) >> 1
        digests = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(digests, torch.tensor([digest]))
        return all(found == digests[0] for found in digests)

    @property
    def report(self) -> dict[str, Any]:
        """What our styles chose, and what they counted; empty in other ways."""
        found = {name: style.report for name, style in self.plan.items() if hasattr(style, "report")}
        meters = [report.pop("exchange") for report in found.values()]
        return {"styles": found, "exchange": meters[0]} if found else {}


def losses(way: str, scale: Scale, seed: int) -> dict[str, Any]:
    """Train; return the validation loss, what every rank sent a step, and whether the ranks stayed alike."""
    trainer = Trainer(way, scale, seed)
    train: list[float] = []
    identical = True
    traffic, begun = counters.read(), time.perf_counter()
    for step in range(scale.num_steps):
        if step == scale.num_warm_up:
            dist.barrier()
            traffic = counters.read()
        train.append(trainer.step().item())
        if step + 1 == 2 * scale.num_warm_up:
            dist.barrier()
            sent = (counters.read() - traffic).sent_bytes / scale.num_warm_up
        if (step + 1) % max(scale.num_steps // 10, 1) == 0:
            identical &= trainer.identical()
    seconds = time.perf_counter() - begun
    counted = torch.zeros(dist.get_world_size(), dtype=torch.float64)
    counted[dist.get_rank()] = sent
    dist.all_reduce(counted)
    return {
        "validation": trainer.validate(),
        "train": train,
        "identical": identical,
        "sent_bytes": counted.tolist(),
        "seconds": seconds,
        "report": trainer.report,
        "num_parameters": sum(parameter.numel() for parameter in gpt.make(scale.size, 0).parameters()),
        "text": trainer.text.source,
    }


def steps(ways: list[str], scale: Scale, num_rounds: int, num_steps: int) -> dict[str, Any]:
    """Train in several ways by turns of `num_steps`; return seconds a step, and bytes a step of each rank."""
    trainers = {way: Trainer(way, scale, 0).step for way in ways}
    turns = take_turns(trainers, num_rounds, num_steps, scale.num_warm_up)
    return {what: {way: [getattr(turn, what) for turn in turns[way]] for way in ways} for what in Turn._fields}


def main() -> None:
    """Do what the command line says."""
    args = rank.training_parser("bench.tensor_ranks", __doc__, SCALES, WAYS).parse_args()
    scale = SCALES[args.scale]
    jobs = {
        "losses": lambda: losses(args.ways[0], scale, args.seed),
        "steps": lambda: steps(args.ways, scale, args.rounds, args.steps),
    }
    rank.work(args.out, jobs[args.job])


if __name__ == "__main__":
    main()
