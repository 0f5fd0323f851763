"""Fashion-MNIST as the Debian package dataset-fashion-mnist has it: 60,000 images to train on, and 10,000 for tests."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Literal

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package puts the images; the environment variable FASHION_MNIST names another folder."""
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FILES = {"train": "train", "test": "t10k"}


def read(split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray]:
    """Return images (uint8[n, 28, 28], 0 is the background) and labels (uint8[n], into `CLASSES`).

    Raises:
        FileNotFoundError: the images are not there.
    """
    folder = Path(os.environ.get("FASHION_MNIST", FOLDER))
    images, labels = (_idx(folder / f"{FILES[split]}-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
    return images, labels


def _idx(path: Path) -> np.ndarray:
    """Return the array in a gzipped idx file of bytes."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install dataset-fashion-mnist, or set FASHION_MNIST to its folder")
    data = gzip.decompress(path.read_bytes())
    num_axes = data[3]
    shape = np.frombuffer(data, ">u4", num_axes, 4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_axes).reshape(shape).copy()
