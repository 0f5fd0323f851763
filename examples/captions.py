"""Captions for Fashion-MNIST: a stand-in for a real image-caption set, made by rule from the pixels and from a seed.

A caption names the class and five of the eight `ATTRIBUTES`, in random order, each in one of two wordings and in one of
three sentences: "a trouser that is even from left to right, thin, of several tones, smooth and high". It says enough to
find one image among a thousand, now and then a few; and two captions of one image are seldom alike. What attributes
measure says `measure`; the limits between their levels are near the quantiles of the training images.

Caption i depends on the seed and on image i alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

INK = 25
"""Pixels above this are ink."""
NUM_NAMED = 5
"""How many attributes a caption names."""
SENTENCES = ("a {} that is {}, {}, {}, {} and {}", "this {} is {}, {}, {}, {} and {}", "{}: {}, {}, {}, {}, {}")
_NUM_AT_ONCE = 4096  # images that are measured at a time


class Attribute(NamedTuple):
    """The limits between the levels of a number, and two wordings of each level."""

    limits: tuple[float, ...]
    words: tuple[tuple[str, str], ...]


ATTRIBUTES = {
    "brightness": Attribute(
        (110, 145, 175, 200),
        (
            ("very dark", "black"),
            ("dark", "dim"),
            ("grey", "medium"),
            ("bright", "pale"),
            ("white", "shining"),
        ),
    ),
    "contrast": Attribute(
        (41, 47, 54),
        (
            ("of one tone", "without shades"),
            ("softly shaded", "of few tones"),
            ("clearly shaded", "of several tones"),
            ("boldly shaded", "of many tones"),
        ),
    ),
    "texture": Attribute(
        (0.41, 0.54, 0.75),
        (
            ("smooth", "plain"),
            ("fairly smooth", "hardly textured"),
            ("textured", "uneven"),
            ("rough", "detailed"),
        ),
    ),
    "width": Attribute(
        (14, 20, 27), (("thin", "very narrow"), ("slim", "narrow"), ("wide", "broad"), ("very wide", "huge"))
    ),
    "height": Attribute((16, 24), (("low", "flat"), ("of medium height", "middling"), ("tall", "high"))),
    "fullness": Attribute(
        (0.6, 0.72, 0.81),
        (("airy", "with large gaps"), ("open", "with gaps"), ("compact", "with few gaps"), ("solid", "without gaps")),
    ),
    "top": Attribute(
        (0.4, 0.5),
        (
            ("heavier below", "weighted to the bottom"),
            ("even from top to bottom", "steady"),
            ("heavier above", "weighted to the top"),
        ),
    ),
    "left": Attribute(
        (0.45, 0.495),
        (
            ("heavier on the right", "leaning right"),
            ("even from left to right", "balanced"),
            ("heavier on the left", "leaning left"),
        ),
    ),
}


def measure(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the number behind each of `ATTRIBUTES`: uint8[n, 28, 28] to float[n] each."""
    ink = images > INK
    pixels = images.astype(np.float32)
    area, total = np.maximum(ink.sum((1, 2)), 1), np.maximum(pixels.sum((1, 2)), 1)
    mean = (pixels * ink).sum((1, 2)) / area
    width, height = ink.any(1).sum(1), ink.any(2).sum(1)
    return {
        "brightness": mean,
        "contrast": np.sqrt((np.square(pixels - mean[:, None, None]) * ink).sum((1, 2)) / area),
        "texture": sum(np.abs(np.diff(pixels, axis=axis)).sum((1, 2)) for axis in (1, 2)) / total,
        "width": width,
        "height": height,
        "fullness": area / np.maximum(width * height, 1),
        "top": pixels[:, :14].sum((1, 2)) / total,
        "left": pixels[:, :, :14].sum((1, 2)) / total,
    }


def levels(images: np.ndarray) -> np.ndarray:
    """Return which level of each of `ATTRIBUTES` an image has: uint8[n, 28, 28] to int64[n, 8]."""
    parts = []
    for start in range(0, len(images), _NUM_AT_ONCE):
        found = measure(images[start : start + _NUM_AT_ONCE])
        parts.append(np.stack([np.digitize(found[name], own.limits) for name, own in ATTRIBUTES.items()], axis=1))
    return np.concatenate(parts) if parts else np.empty((0, len(ATTRIBUTES)), np.int64)


def describe(images: np.ndarray, names: Sequence[str], seed: int = 0) -> list[str]:
    """Return a caption for each image: uint8[n, 28, 28] and the names of their classes."""
    words = [attribute.words for attribute in ATTRIBUTES.values()]
    chance = np.random.default_rng(seed).random((len(images), 2 * len(words) + 1))
    named = chance[:, : len(words)].argsort(axis=1)[:, :NUM_NAMED]
    wordings = (2 * chance[:, len(words) : -1]).astype(int)
    sentences = (len(SENTENCES) * chance[:, -1]).astype(int)
    captions = []
    for i, (own, name) in enumerate(zip(levels(images), names, strict=True)):
        said = [words[k][own[k]][wordings[i, k]] for k in named[i]]
        captions.append(SENTENCES[sentences[i]].format(name, *said))
    return captions
