"""A run of training: its state, which is saved to a file and resumed from it to the last bit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import trimtab as tt
from examples.checkpoint import load_optimizer, optimizer_tensors, part, refuse_other
from examples.clip import CLIP
from examples.pairs import Pairs
from examples.retrieval import Tokenizer


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
        tensors |= optimizer_tensors(self.optimizer)
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
        refuse_other(path, self.settings, metadata["settings"])
        self.model.load_state_dict(part(saved, "model/"))
        self.loss.load_state_dict(part(saved, "loss/") | metadata["loss"])
        load_optimizer(self.optimizer, saved)
        self.step, self.total = metadata["progress"]["step"], metadata["progress"]["total"]
        return saved["random"]
