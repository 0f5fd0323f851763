"""Floats of two bytes, as NumPy and ml_dtypes hold them, to float32 and back: the specification.

Elements travel as their bits (uint16) beside the name of their format, "float16" or "bfloat16".
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

_DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def widen(bits: np.ndarray, name: str, y: np.ndarray) -> None:
    """Write the float32 that each element is to `y`; NaN become any NaN."""
    with np.errstate(invalid="ignore"):
        y[:] = bits.view(_DTYPES[name])


def narrow(x: np.ndarray, name: str, bits: np.ndarray) -> None:
    """Write the nearest element, ties to even, for each float32 of `x`; there are no NaN in `x`."""
    with np.errstate(over="ignore"):
        bits[:] = x.astype(_DTYPES[name]).view(np.uint16)
