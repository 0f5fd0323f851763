"""A run of training: its ranks, and its state, which is saved to a file and resumed from it to the last bit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

import trimtab as tt
from examples.clip import CLIP
from examples.pairs import Pairs
from examples.retrieval import Tokenizer


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


@dataclass
class Run:
    """A run: what learns from what, and how far it is."""

    pairs: Pairs
    tokenize: Tokenizer
    model: CLIP
    loss: tt.train.FastCLIP
    optimizer: torch.optim.Optimizer
    settings: dict[str, Any]
    """What the results depend on; a checkpoint of other settings is refused."""
    step: int = 0
    total: float = 0.0
    """The sum of the losses of this epoch's steps."""

    @property
    def steps_an_epoch(self) -> int:
        return len(self.pairs) // self.settings["batch"]

    @property
    def num_steps(self) -> int:
        return self.settings["epochs"] * self.steps_an_epoch

    def save(self, path: Path, random_states: torch.Tensor) -> None:
        """Write a checkpoint, which takes the place of the last one when all of it is written."""
        tensors = {f"model/{name}": x for name, x in self.model.state_dict().items()}
        loss = self.loss.state_dict()
        tensors |= {f"loss/{name}": x for name, x in loss.items() if isinstance(x, torch.Tensor)}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{name}": x for name, x in state.items()}
        tensors["random"] = random_states
        metadata = {
            "settings": self.settings,
            "progress": {"step": self.step, "total": self.total},
            "loss": {name: x for name, x in loss.items() if not isinstance(x, torch.Tensor)},
        }
        texts = {name: json.dumps(value) for name, value in metadata.items()}
        tt.save(path, tensors, codec=tt.codecs.Raw(), metadata=texts)  # float32 hardly packs, and this takes no time

    def resume(self, path: Path) -> torch.Tensor:
        """Go on from a checkpoint, and return the states of the ranks' generators.

        Raises:
            ValueError: the checkpoint is of a run with other settings, data or ranks.
        """
        saved = tt.load(path, framework="pt")
        metadata = {name: json.loads(text) for name, text in saved.report["metadata"].items()}
        theirs = metadata["settings"]
        differing = [
            f"{name} is {value!r} here and {theirs.get(name)!r} there"
            for name, value in self.settings.items()
            if theirs.get(name) != value
        ]
        if differing:
            raise ValueError(f"{path} is of another run: {'; '.join(differing)}")
        self.model.load_state_dict(_part(saved, "model/"))
        self.loss.load_state_dict(_part(saved, "loss/") | metadata["loss"])
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, x in _part(saved, "optimizer/").items():
            number, _, key = name.partition("/")
            states.setdefault(int(number), {})[key] = x
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": states})
        self.step, self.total = metadata["progress"]["step"], metadata["progress"]["total"]
        return saved["random"]


def _part(saved: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): saved[name] for name in saved if name.startswith(prefix)}
