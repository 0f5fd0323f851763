"""A small CLIP: an encoder of images, one of text, and the temperature between them.

Encoders are any modules that return vectors of `columns` elements, made by ``make(shape, columns)`` for images and
``make(vocabulary, context, columns)`` for tokens; those here are a convolutional network and a transformer, small
enough to learn on one core. A tokenizer is anything with `vocabulary` and `context` that maps texts to
int64[n, tokens], padded with 0; those here need no file, since a token is the hash of a word, or a byte.
"""

from __future__ import annotations

import importlib
import math
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

MAX_SCALE = 100.0
"""The largest logit scale, as CLIP has it: a temperature of 0.01."""


class ConvNet(nn.Module):
    """Convolutions that halve the sides until one is at most 4: float32[n, channels, h, w] to [n, columns]."""

    def __init__(self, shape: tuple[int, int, int], columns: int, width: int = 16) -> None:
        super().__init__()
        channels, *sides = shape
        layers: list[nn.Module] = []
        for _ in range(math.ceil(math.log2(max(min(sides) / 4, 1)))):
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
            channels, width = width, min(2 * width, 512)
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(16 * channels, columns)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images))


class TextTransformer(nn.Module):
    """A transformer over tokens, whose mean is the vector of the text: int64[n, context] to [n, columns]; 0 pads."""

    def __init__(self, vocabulary: int, context: int, columns: int, width: int = 64, num_layers: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, max(width // 32, 1), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, columns)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        padding = tokens == 0
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(2)
        return self.head((self.norm(x) * kept).sum(1) / kept.sum(1).clamp(min=1))


class CLIP(nn.Module):
    """Two encoders: images and tokens to normalised features of both, and the logit scale, 1 / temperature."""

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, temperature: float = 0.07) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.encode_images(images), self.encode_texts(tokens), self.log_scale.exp()

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.image_encoder(images), dim=1)

    def encode_texts(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.text_encoder(tokens), dim=1)

    @property
    def temperature(self) -> float:
        """1 / logit scale."""
        return math.exp(-self.log_scale.item())

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the logit scale between 1 and `MAX_SCALE`; after a step of the optimizer."""
        self.log_scale.clamp_(0, math.log(MAX_SCALE))


class Words:
    """Tokens of a text, one a word or punctuation mark: its hash. Texts are cut off after `context` tokens."""

    def __init__(self, vocabulary: int = 4096, context: int = 32) -> None:
        self.vocabulary, self.context = vocabulary, context

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        return _padded([self._tokens(text) for text in texts])

    def _tokens(self, text: str) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", text.lower())[: self.context]
        return [1 + zlib.crc32(word.encode()) % (self.vocabulary - 1) for word in words]


class Bytes:
    """Tokens of a text, one a byte of its UTF-8 form. Texts are cut off after `context` bytes."""

    vocabulary = 257

    def __init__(self, context: int = 128) -> None:
        self.context = context

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        return _padded([[1 + byte for byte in text.encode()[: self.context]] for text in texts])


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return int64[texts, tokens of the longest], at least one token wide; 0 pads."""
    longest = max([1, *map(len, rows)])
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows]).reshape(len(rows), longest)


def named(path: str) -> Callable[..., Any]:
    """Return what ``module:name`` names.

    Raises:
        ValueError: there is no such module or name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path!r} should be MODULE:NAME: {error}") from None
