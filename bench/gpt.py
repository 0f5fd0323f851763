"""A byte-level GPT and its data, the source of Python's standard library: what communication is measured with.

Every linear layer of a block stands alone (q, k, v, out, up, down), so that a plan for tensor parallelism can name
it, and every block is a unit for `fully_shard`. A batch follows from seed and step alone: each rank takes its rows of
the same global batch, on any number of ranks.
"""

from __future__ import annotations

import math
import platform
import sysconfig
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

VOCABULARY = 256
"""Bytes."""

LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"})
"""Folders of the library that are no part of the text: installed packages, and what distributions leave out."""

VALIDATION_SHARE = 10
"""One file in so many is for validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The measures of a model."""

    width: int
    num_heads: int
    num_blocks: int
    context: int
    """Tokens of a sequence."""


SIZES = {
    "10M": Size(width=384, num_heads=6, num_blocks=6, context=128),
    "small": Size(width=96, num_heads=3, num_blocks=2, context=64),
}
"""Name -> measures: of the claims (10.8 million parameters), and of the tests (0.28 million)."""


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm and added to what came in: ``[batch, tokens, width]``."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.head_width = size.width // size.num_heads
        self.attention_norm = nn.LayerNorm(size.width)
        self.q = nn.Linear(size.width, size.width, bias=False)
        self.k = nn.Linear(size.width, size.width, bias=False)
        self.v = nn.Linear(size.width, size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.norm = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, 4 * size.width, bias=False)
        self.down = nn.Linear(4 * size.width, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention_norm(x)
        # as many heads as there are on this rank
        q, k, v = (layer(y).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm(x))))


class GPT(nn.Module):
    """A decoder of bytes: int64 ``[batch, tokens]`` to float32 logits of the next, ``[batch, tokens, 256]``."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size.width)
        self.position = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.num_blocks))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).float()


def make(size: Size, seed: int) -> GPT:
    """Return a model with the weights of a seed: normal, 0.02 wide, less where a block adds to what came in.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(size)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            adds = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * size.num_blocks) ** 0.5 if adds else 0.02, generator=generator)
    return model


def loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy in nats a byte."""
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def share_of_rate(step: int, num_steps: int, last: float) -> float:
    """Return the learning rate of a step as a share of the highest.

    It rises for a tenth of the steps, and falls to `last` as a cosine.
    """
    warm = max(num_steps // 10, 1)
    done = (step - warm) / max(num_steps - warm, 1)
    return (step + 1) / warm if step < warm else last + (1 - last) / 2 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True, slots=True)
class Text:
    """Bytes to train on, and others to validate with, as uint8."""

    train: Tensor
    validation: Tensor
    source: str
    """What the text is, with the version that it depends on."""

    def batch(
        self, size: Size, num_rows: int, *, seed: int, step: int, rank: int, world_size: int
    ) -> tuple[Tensor, Tensor]:
        """Return this rank's `num_rows` sequences of a step, and the same shifted by one byte."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        starts = torch.randint(len(self.train) - size.context, (world_size, num_rows), generator=generator)[rank]
        return _sequences(self.train, starts, size.context)

    def held_out(self, size: Size, num_rows: int) -> tuple[Tensor, Tensor]:
        """Return `num_rows` sequences, evenly spaced over the validation text."""
        starts = torch.linspace(0, len(self.validation) - size.context - 1, num_rows, dtype=torch.float64).long()
        return _sequences(self.validation, starts, size.context)


def _sequences(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    rows = text[starts[:, None] + torch.arange(context + 1)].long()
    return rows[:, :-1], rows[:, 1:]


@cache
def library() -> Text:
    """Return the source of Python's standard library, file by file in the order of paths.

    A file is for validation if the CRC-32 of its path is a multiple of ten, so a file that comes or goes with a
    version of Python moves no other. The text itself differs between versions.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    names = sorted(name for name in files if not LEFT_OUT & set(name.split("/")))
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    for name in names:
        parts[zlib.crc32(name.encode()) % VALIDATION_SHARE == 0].append(files[name].read_bytes())
    train, validation = (
        torch.frombuffer(bytearray(b"".join(parts[which])), dtype=torch.uint8) for which in (False, True)
    )
    source = f"standard library of Python {platform.python_version()}, {len(names)} files"
    return Text(train, validation, source)
