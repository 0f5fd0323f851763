"""The element types that trimtab stores: their names, NumPy dtypes and safetensors names.

A dtype travels as its NumPy (and PyTorch) name, for instance ``float32`` or ``bfloat16``.
Types that NumPy lacks come from ml_dtypes, so no part of trimtab needs PyTorch to hold them.
"""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np

from trimtab.errors import ShapeError

SAFETENSORS_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}
"""dtype name -> name in a safetensors header, for every dtype that a safetensors file can hold."""

NAMES = (*SAFETENSORS_NAMES, "complex128")
"""Every dtype name that a packed file may carry."""

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""The real floating-point dtypes that an error bound applies to."""

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
"""The integer dtypes that an error bound can apply to, too."""

REALS = FLOATS + INTEGERS


@cache
def numpy_dtype(name: str) -> np.dtype:
    """Return the little-endian NumPy dtype called `name`.

    Raises:
        ShapeError: `name` is not in `NAMES`.
    """
    if name not in NAMES:
        raise ShapeError(f"unknown dtype {name!r}; expected one of {', '.join(NAMES)}")
    scalar = getattr(ml_dtypes, name, None)
    return np.dtype(scalar) if scalar is not None else np.dtype(name).newbyteorder("<")


@cache  # NumPy works a dtype's name out anew each time it is asked for
def dtype_name(dtype: np.dtype) -> str:
    """Return the name of a NumPy dtype, whatever its byte order.

    Raises:
        ShapeError: arrays of this dtype cannot be stored (objects, strings, records, dates).
    """
    name = dtype.name
    if name not in NAMES:
        raise ShapeError(
            f"cannot store arrays of dtype {dtype}; expected one of {', '.join(NAMES)}. "
            "Convert with astype(), or leave this array out"
        )
    return name
