"""Python values as JSON, for what stands beside the tensors of a checkpoint; nothing is pickled.

``None``, truth values, whole numbers, finite floats, texts and lists are what they are in JSON. Any other value is an
object with one key, its kind: ``{"tuple": [0.9, 0.999]}``. Arrays are packed files in base64.
"""

from __future__ import annotations

import base64
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from trimtab import store
from trimtab.errors import Corrupt, FormatError, UsageError


class _Kind(NamedTuple):
    """How values of one type become JSON, and come back."""

    type: type
    to_json: Callable[[Any], Any]
    from_json: Callable[[Any], Any]


def dumps(value: Any) -> bytes:
    """Return a value as JSON.

    Raises:
        UsageError: it is, or holds, something of another type, or it is nested too deeply.
    """
    try:
        return json.dumps(_to_json(value), allow_nan=False).encode()
    except UsageError:
        raise
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise UsageError(f"the value cannot be stored: {error}") from None


def loads(text: bytes) -> Any:
    """Return the value that `dumps` was given.

    Raises:
        FormatError: the text is not what `dumps` returns.
    """
    try:
        return _from_json(json.loads(text))
    except FormatError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, ArithmeticError, RuntimeError) as error:
        raise Corrupt(f"bad value: {type(error).__name__}: {error}") from None


def _to_json(value: Any) -> Any:
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is list:
        return [_to_json(item) for item in value]
    for name, kind in _KINDS.items():
        if type(value) is kind.type or (kind.type is np.generic and isinstance(value, np.generic)):
            return {name: kind.to_json(value)}
    raise UsageError(
        f"a {type(value).__module__}.{type(value).__qualname__} would have to be pickled; "
        "store numbers, texts, bytes, tensors, and lists, tuples, sets or dicts of them"
    )


def _from_json(data: Any) -> Any:
    if isinstance(data, list):
        return [_from_json(item) for item in data]
    if isinstance(data, dict):
        ((name, inner),) = data.items()
        return _KINDS[name].from_json(inner)
    return data


def _items_to_json(values: Any) -> list[Any]:
    return [_to_json(value) for value in values]


def _pairs_to_json(mapping: Any) -> list[Any]:
    return [[_to_json(key), _to_json(value)] for key, value in mapping.items()]


def _pairs(data: Any) -> list[tuple[Any, Any]]:
    return [(_from_json(key), _from_json(value)) for key, value in data]


def _bytes_to_json(blob: bytes) -> str:
    return base64.b64encode(blob).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _complex(data: Any) -> complex:
    real, imaginary = map(_from_json, data)
    return complex(real, imaginary)


def _array_to_json(x: Any) -> str:
    return _bytes_to_json(store.compress(x))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name!r} is no dtype")
    return dtype


_KINDS = {
    "float": _Kind(float, str, float),  # those that JSON lacks: nan, inf, -inf
    "complex": _Kind(complex, lambda z: _items_to_json([z.real, z.imag]), _complex),
    "bytes": _Kind(bytes, _bytes_to_json, _bytes),
    "tuple": _Kind(tuple, _items_to_json, lambda data: tuple(map(_from_json, data))),
    "set": _Kind(set, _items_to_json, lambda data: set(map(_from_json, data))),
    "dict": _Kind(dict, _pairs_to_json, lambda data: dict(_pairs(data))),
    "OrderedDict": _Kind(OrderedDict, _pairs_to_json, lambda data: OrderedDict(_pairs(data))),
    "torch.Size": _Kind(torch.Size, list, torch.Size),
    "torch.dtype": _Kind(torch.dtype, lambda dtype: str(dtype).removeprefix("torch."), _dtype),
    "torch.device": _Kind(torch.device, str, torch.device),
    "torch.Tensor": _Kind(torch.Tensor, _array_to_json, lambda text: store.decompress(_bytes(text), framework="pt")),
    "numpy.ndarray": _Kind(np.ndarray, _array_to_json, lambda text: store.decompress(_bytes(text))),
    "numpy.generic": _Kind(np.generic, _array_to_json, lambda text: np.asarray(store.decompress(_bytes(text)))[()]),
}
