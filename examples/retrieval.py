"""How good a CLIP is: recall of captions by images and of images by captions, and zero-shot classification."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F  # noqa: N812

from examples.clip import CLIP
from examples.pairs import Classes, FashionMNIST, Pairs

RANKS = (1, 5, 10)
"""The k of recall at k."""
PROMPTS = ("a {}", "this {}", "a photo of a {}")
"""Texts that stand for a class."""
_NUM_AT_ONCE = 512  # images or texts that are encoded at a time, and rows that are ranked

Tokenizer = Callable[[Sequence[str]], torch.Tensor]


@torch.no_grad()
def encode(model: CLIP, pairs: Pairs, tokenize: Tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features of all images and of all captions, float32[n, columns] each."""
    device = model.log_scale.device
    images, texts = [], []
    for start in range(0, len(pairs), _NUM_AT_ONCE):
        numbers = range(start, min(start + _NUM_AT_ONCE, len(pairs)))
        images.append(model.encode_images(pairs.images(numbers).to(device)).float())
        texts.append(model.encode_texts(tokenize(pairs.captions(numbers)).to(device)).float())
    return torch.cat(images), torch.cat(texts)


def recall(queries: torch.Tensor, found: torch.Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Return for each k the share of queries whose own pair is among the k best of `found`.

    Pairs of the same caption are each other's, too, since nothing tells them apart. Where others score as high as the
    best of the own, they count as better: features that are all alike find nothing.
    """
    first = {caption: number for number, caption in reversed([*enumerate(captions)])}
    groups = torch.tensor([first[caption] for caption in captions], device=queries.device)
    better = []
    for rows, own in zip(queries.split(_NUM_AT_ONCE), groups.split(_NUM_AT_ONCE), strict=True):
        scores, same = rows @ found.T, own[:, None] == groups
        best = scores.masked_fill(~same, -math.inf).amax(1, keepdim=True)
        better.append(((scores >= best) & ~same).sum(1))
    places = torch.cat(better)
    return {f"R@{k}": (places < k).float().mean().item() for k in RANKS}


def retrieval(model: CLIP, pairs: Pairs, tokenize: Tokenizer) -> dict[str, dict[str, float]]:
    """Return the recalls of texts by images, and of images by texts."""
    images, texts = encode(model, pairs, tokenize)
    captions = pairs.captions(range(len(pairs)))
    return {"image_to_text": recall(images, texts, captions), "text_to_image": recall(texts, images, captions)}


@torch.no_grad()
def zero_shot(model: CLIP, labelled: Classes | FashionMNIST, names: Sequence[str], tokenize: Tokenizer) -> float:
    """Return the share of images whose class, of those named, is the one with the nearest prompts."""
    device = model.log_scale.device
    prompts = torch.stack(
        [model.encode_texts(tokenize([prompt.format(name) for prompt in PROMPTS]).to(device)).mean(0) for name in names]
    )
    prompts = F.normalize(prompts, dim=1)
    correct = 0
    for start in range(0, len(labelled), _NUM_AT_ONCE):
        numbers = range(start, min(start + _NUM_AT_ONCE, len(labelled)))
        nearest = (model.encode_images(labelled.images(numbers).to(device)) @ prompts.T).argmax(1)
        correct += int((nearest.cpu() == labelled.labels[numbers.start : numbers.stop]).sum())
    return correct / len(labelled)
