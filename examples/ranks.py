"""The processes of a training run: what torchrun started, or this one alone."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import torch.distributed as dist


class Ranks(NamedTuple):
    """This process among those of the run, and where it computes."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls) -> Ranks:
        """Join the ranks that torchrun started; without it, this is the only one."""
        cuda = torch.cuda.is_available()
        if "WORLD_SIZE" not in os.environ:
            return cls(0, 1, torch.device("cuda" if cuda else "cpu"))
        dist.init_process_group("nccl" if cuda else "gloo")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def random_states(self) -> torch.Tensor:
        """Return the states of the generators of all ranks, a row each."""
        own = torch.get_rng_state()
        if self.device.type == "cuda":
            own = torch.cat([own, torch.cuda.get_rng_state()])
        if self.size == 1:
            return own[None]
        found = [torch.empty_like(own, device=self.device) for _ in range(self.size)]
        dist.all_gather(found, own.to(self.device))
        return torch.stack(found).cpu()

    def set_random_state(self, states: torch.Tensor) -> None:
        """Put the generators of this rank in a state of `random_states`."""
        num = torch.get_rng_state().numel()
        torch.set_rng_state(states[self.rank, :num].clone())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[self.rank, num:].clone())
