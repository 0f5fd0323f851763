"""Ordinary safetensors files, read lazily."""

from __future__ import annotations

import numpy as np
import pytest

import trimtab as tt
from tests.samples import ALL, same_bits, sample
from trimtab.plain import Plain
from trimtab.sources import Spec, create_target


def test_every_dtype_and_shape(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {
        f"{name} {shape}": sample(name, shape) for name in ALL if name != "complex128" for shape in [(), (3, 0), (7,)]
    }
    with create_target(path, {n: Spec(x.dtype.name, x.shape) for n, x in arrays.items()}, {"k": "v"}) as target:
        for name in target.order:
            target.add(name, arrays[name])
    plain = Plain(path)
    assert plain.metadata == {"k": "v"}
    assert set(plain) == set(arrays)
    assert len(plain) == len(arrays)
    assert all(same_bits(plain[name], x) for name, x in arrays.items())
    assert "no such" not in plain
    with pytest.raises(KeyError):
        plain["no such"]


def test_damage_is_told(tmp_path):
    path = tmp_path / "a.safetensors"
    with create_target(path, {"a": Spec("float32", (1000,))}, {}) as target:
        target.add("a", np.ones(1000, np.float32))
    blob = path.read_bytes()
    for cut in (0, 5, 30, len(blob) - 1):
        path.write_bytes(blob[:cut])
        with pytest.raises(tt.FormatError):
            Plain(path)
    path.write_bytes(blob)
    plain = Plain(path)
    path.write_bytes(blob[:-1])
    with pytest.raises(tt.FormatError, match="cut short"):
        plain["a"]
