"""Images and their captions, each pair with a number that it keeps: from a folder, from shards, or Fashion-MNIST.

FastCLIP remembers something about each sample, so each needs the same number in every epoch and after every restart.
Shards in webdataset's form (tar files, a sample being the files that share a name up to the first dot) are therefore
indexed once, by reading their headers, and then read at random places; a stream through a shuffle buffer, as the
webdataset package reads them, neither numbers its samples nor resumes where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from examples import fashion_mnist
from examples.captions import describe

IMAGES = ("jpg", "jpeg", "png", "webp")
"""Endings of files that are images."""
SMALLEST_CROP = 0.8
"""The least share of an image's area that is shown in training."""


class Pairs(Protocol):
    """Images with captions, numbered from 0."""

    shape: tuple[int, int, int]
    """Of the images: channels, height, width."""
    fingerprint: str
    """Differs where the pairs, or their order, do."""

    def __len__(self) -> int: ...

    def captions(self, numbers: Sequence[int]) -> list[str]:
        """Return the captions of some pairs."""
        ...

    def images(self, numbers: Sequence[int], crops: Sequence[np.random.Generator] | None = None) -> torch.Tensor:
        """Return the images of some pairs, float32[n, channels, height, width] from -1 to 1.

        With `crops`, a generator each, they are cropped at random, for training; without, each is its centre.
        """
        ...


class FashionMNIST:
    """Fashion-MNIST with captions made by rule (`examples.captions`), at most `limit` images from `start` on."""

    shape = (1, 28, 28)

    def __init__(self, split: str, start: int = 0, limit: int | None = None, seed: int = 0) -> None:
        images, labels = fashion_mnist.read("train" if split == "train" else "test")
        part = slice(start, None if limit is None else start + limit)
        self.labels = torch.from_numpy(labels[part]).long()
        self._images = torch.from_numpy(images[part]).unsqueeze(1)
        self._captions = describe(images[part], [fashion_mnist.CLASSES[label] for label in self.labels], seed)
        self.fingerprint = f"Fashion-MNIST {split} {start} {len(self._images)} {seed}"

    def __len__(self) -> int:
        return len(self._images)

    def captions(self, numbers: Sequence[int]) -> list[str]:
        return [self._captions[number] for number in numbers]

    def images(self, numbers: Sequence[int], crops: Sequence[np.random.Generator] | None = None) -> torch.Tensor:
        """Crops are moves by up to a pixel, since things fill the image."""
        found = self._images[torch.as_tensor(numbers)].float() / 127.5 - 1
        if crops is None:
            return found
        padded = torch.nn.functional.pad(found, (1, 1, 1, 1), value=-1.0)
        down, right = torch.from_numpy(np.array([own.integers(0, 3, 2) for own in crops]).T[:, :, None])
        rows, columns = down + torch.arange(28), right + torch.arange(28)
        return padded[torch.arange(len(found))[:, None, None], 0, rows[:, :, None], columns[:, None]].unsqueeze(1)


class Folder:
    """A folder, and those inside it: each image with a text file of the same name beside it, sorted by path.

    Raises:
        ValueError: there are no such pairs.
    """

    def __init__(self, path: Path, side: int) -> None:
        self.shape = (3, side, side)
        files = sorted(file for file in path.rglob("*") if file.suffix.lower()[1:] in IMAGES)
        self._files = [file for file in files if file.with_suffix(".txt").exists()]
        if not self._files:
            raise ValueError(f"{path} has no images with text files beside them")
        self.fingerprint = _digest(file.relative_to(path).as_posix() for file in self._files)

    def __len__(self) -> int:
        return len(self._files)

    def captions(self, numbers: Sequence[int]) -> list[str]:
        return [self._files[number].with_suffix(".txt").read_text(encoding="utf-8").strip() for number in numbers]

    def images(self, numbers: Sequence[int], crops: Sequence[np.random.Generator] | None = None) -> torch.Tensor:
        files = [self._files[number] for number in numbers]
        return torch.stack(
            [decode(file.read_bytes(), str(file), self.shape[1], own) for file, own in _each(files, crops)]
        )


class Span(NamedTuple):
    """Where a file of a shard lies."""

    start: int
    num_bytes: int


class Shards:
    """Tar files in webdataset's form; the caption is the file txt of a sample, or "caption" in its json.

    Pairs are numbered by the names of the shards, and inside them in order, so a shard that is added at the end changes
    no number. Samples without image or caption are left out.

    Raises:
        ValueError: a file is no tar file, or compressed, or there are no pairs.
    """

    def __init__(self, paths: Sequence[Path], side: int) -> None:
        self.shape = (3, side, side)
        self._paths = sorted(paths)
        rows = [row for shard, path in enumerate(self._paths) for row in _index(shard, path)]
        if not rows:
            raise ValueError(f"no pairs in {len(self._paths)} shards")
        self._rows = np.array(rows, np.int64)  # shard, image and caption's start and bytes, whether it is JSON
        sizes = np.bincount(self._rows[:, 0], minlength=len(self._paths))
        self.fingerprint = _digest(f"{path.name} {size}" for path, size in zip(self._paths, sizes, strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def captions(self, numbers: Sequence[int]) -> list[str]:
        found = []
        for number in numbers:
            shard, _, _, start, num_bytes, is_json = map(int, self._rows[number])
            text = self._read(shard, Span(start, num_bytes)).decode()
            found.append((json.loads(text)["caption"] if is_json else text).strip())
        return found

    def images(self, numbers: Sequence[int], crops: Sequence[np.random.Generator] | None = None) -> torch.Tensor:
        found = []
        for number, own in _each(numbers, crops):
            shard, start, num_bytes = map(int, self._rows[number, :3])
            data = self._read(shard, Span(start, num_bytes))
            found.append(decode(data, f"sample {number} in {self._paths[shard]}", self.shape[1], own))
        return torch.stack(found)

    def _read(self, shard: int, span: Span) -> bytes:
        with self._paths[shard].open("rb") as file:
            file.seek(span.start)
            data = file.read(span.num_bytes)
        if len(data) < span.num_bytes:
            raise ValueError(f"{self._paths[shard]} was cut short")
        return data


def _each(subjects: Sequence[Any], crops: Sequence[np.random.Generator] | None) -> Iterator[tuple]:
    return zip(subjects, crops or [None] * len(subjects), strict=True)


def _index(shard: int, path: Path) -> Iterator[tuple[int, ...]]:
    """Yield a row a pair: the shard, image and caption's start and bytes, whether the caption is in JSON."""
    samples: dict[str, dict[str, Span]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                if member.isreg():
                    span = Span(member.offset_data, member.size)
                    samples.setdefault(f"{folder}/{key}", {})[ending.lower()] = span
                tar.members = []  # else it keeps all of them
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not an uncompressed tar file: {error}") from None
    for files in samples.values():
        image = next((files[ending] for ending in IMAGES if ending in files), None)
        text = files.get("txt", files.get("json"))
        if image and text:
            yield shard, *image, *text, int("txt" not in files)


def decode(data: bytes, name: str, side: int, crop: np.random.Generator | None) -> torch.Tensor:
    """Return an image file's pixels, float32[3, side, side] from -1 to 1.

    The part shown is the largest square in the middle; with `crop`, a random square that has at least `SMALLEST_CROP`
    of its area.

    Raises:
        ValueError: it is not an image that Pillow reads.
    """
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
        raise ValueError(f"{name}: {error}") from None
    width, height = image.size
    whole = min(width, height)
    if crop is None:
        left, top, cut = (width - whole) / 2, (height - whole) / 2, float(whole)
    else:
        cut = whole * crop.uniform(SMALLEST_CROP, 1) ** 0.5
        left, top = crop.uniform(0, width - cut), crop.uniform(0, height - cut)
    image = image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + cut, top + cut))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def open_pairs(path: Path, side: int) -> Pairs:
    """Return the pairs at a path: a tar file, a folder of tar files, or a folder of images and texts.

    Raises:
        ValueError: there are none.
    """
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        return Shards(shards, side) if shards else Folder(path, side)
    if not path.exists():
        raise ValueError(f"there is no {path}")
    return Shards([path], side)


class Classes:
    """Images in a folder for each class, whose name is the folder's, for zero-shot classification.

    Raises:
        ValueError: there are no such images.
    """

    def __init__(self, path: Path, side: int) -> None:
        self.names = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
        self._side = side
        found = [
            (file, label)
            for label, name in enumerate(self.names)
            for file in sorted((path / name).iterdir())
            if file.suffix.lower()[1:] in IMAGES
        ]
        if not found:
            raise ValueError(f"{path} has no folders of images")
        self._files = [file for file, _ in found]
        self.labels = torch.tensor([label for _, label in found])

    def __len__(self) -> int:
        return len(self._files)

    def images(self, numbers: Sequence[int]) -> torch.Tensor:
        files = [self._files[number] for number in numbers]
        return torch.stack([decode(file.read_bytes(), str(file), self._side, None) for file in files])


def _digest(lines: Iterator[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:16]
