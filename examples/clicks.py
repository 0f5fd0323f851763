"""Clicks to train a recommender on: a synthetic set that needs no download, and Criteo's files where a user has them.

The synthetic set, from a seed:

- categorical feature t has `num_rows[t]` values. Value k (from 0) is drawn with a probability proportional to
  ``(k + 1) ** -zipf``, and then renamed by a fixed random permutation, so that an id says nothing about its rank;
- each value has a weight ~ N(0, 0.5) and a vector of 4 elements ~ N(0, 0.35); 13 dense features are ~ N(0, 1), and
  their weights ~ N(0, 0.15);
- the click is 1 with probability ``sigmoid(s - 1)``, where s is the sum of the weights, of dense features times their
  weights, and of the products of all pairs of vectors, ``(|sum of vectors|^2 - sum of |vector|^2) / 2``.

Batch i of a split depends on the seed, the split and i alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

NUM_DENSE = 13
SPLITS = ("train", "test")


class Batch(NamedTuple):
    """Samples: dense features float32[n, 13], ids int64[num_features, n], clicks float32[n]."""

    dense: np.ndarray
    ids: np.ndarray
    clicks: np.ndarray


class SyntheticClicks:
    """The synthetic set: `batch` returns any batch of it.

    Args:
        num_rows: How many values each categorical feature has.
        zipf: The exponent of their popularity.
        seed: Of everything that is random.
    """

    def __init__(self, num_rows: list[int], zipf: float = 1.1, seed: int = 0) -> None:
        self.num_rows, self.zipf, self.seed = num_rows, zipf, seed
        rng = np.random.default_rng((seed, 0))
        self._dense = rng.normal(0, 0.15, NUM_DENSE)
        self._chances, self._names, self._weights, self._vectors = [], [], [], []
        for num in num_rows:
            chances = np.cumsum(np.arange(1, num + 1) ** -zipf)
            self._chances.append(chances / chances[-1])
            self._names.append(rng.permutation(num))
            self._weights.append(rng.normal(0, 0.5, num))
            self._vectors.append(rng.normal(0, 0.35, (num, 4)))

    def batch(self, split: str, index: int, size: int) -> Batch:
        """Return batch `index` of a split, "train" or "test"."""
        rng = np.random.default_rng((self.seed, 1 + SPLITS.index(split), index))
        dense = rng.standard_normal((size, NUM_DENSE), dtype=np.float32)
        ids = np.empty((len(self.num_rows), size), np.int64)
        score, total, squares = dense @ self._dense, np.zeros((size, 4)), np.zeros(size)
        for t, names in enumerate(self._names):
            ids[t] = names[np.minimum(np.searchsorted(self._chances[t], rng.random(size)), names.size - 1)]
            vectors = self._vectors[t][ids[t]]
            score += self._weights[t][ids[t]]
            total += vectors
            squares += np.square(vectors).sum(axis=1)
        score += (np.square(total).sum(axis=1) - squares) / 2
        clicks = rng.random(size) < 1 / (1 + np.exp(1 - score))
        return Batch(dense, ids, clicks.astype(np.float32))


class CriteoClicks:
    """Criteo's file: a click, 13 counts and 26 categories a line, between tabs; an empty field is a missing value.

    A count c becomes ``log(1 + max(c, 0))``, a category its hexadecimal number modulo the rows of its table. The last
    tenth of the file, line by line, is for tests.

    Args:
        path: The file, `train.txt` of the Kaggle set or `day_N` of the Terabyte set.
        num_rows: How many rows the table of each of the 26 categories has.
    """

    def __init__(self, path: Path, num_rows: list[int]) -> None:
        if len(num_rows) != 26:
            raise ValueError(f"Criteo has 26 categories, got {len(num_rows)} tables")
        self.path, self.num_rows = path, num_rows
        with path.open("rb") as file:
            self._num_lines = sum(1 for _ in file)
        self._rows: dict[str, tuple[int, Iterator[bytes]]] = {}

    def batch(self, split: str, index: int, size: int) -> Batch:
        """Return batch `index` of a split; the set starts again where it ends. Reading in order is fast."""
        lines = list(itertools.islice(self._from(split, index * size, size), size))
        fields = [line.rstrip(b"\n").split(b"\t") for line in lines]
        clicks = np.array([float(row[0]) for row in fields], np.float32)
        counts = np.array([[float(value or 0) for value in row[1:14]] for row in fields], np.float32)
        ids = np.array([[int(value or b"0", 16) for value in row[14:40]] for row in fields], np.int64).T
        return Batch(np.log1p(np.maximum(counts, 0)), ids % np.array(self.num_rows)[:, None], clicks)

    def _from(self, split: str, start: int, size: int) -> Iterator[bytes]:
        """Return the lines of a split from `start` on, in circles."""
        at, lines = self._rows.get(split, (-1, iter(())))
        if at != start:
            lines = itertools.chain.from_iterable(self._lines(split) for _ in itertools.count())
            lines = itertools.islice(lines, start % self._length(split), None)
        self._rows[split] = start + size, lines
        return lines

    def _length(self, split: str) -> int:
        num_train = self._num_lines - self._num_lines // 10
        return num_train if split == "train" else self._num_lines - num_train

    def _lines(self, split: str) -> Iterator[bytes]:
        num_train = self._length("train")
        with self.path.open("rb") as file:
            yield from (
                itertools.islice(file, num_train) if split == "train" else itertools.islice(file, num_train, None)
            )
