"""Values as JSON: all kinds come back, anything else is refused, and no text runs code."""

from __future__ import annotations

import json
import math
import pickle
from collections import OrderedDict, defaultdict, namedtuple
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab import values
from trimtab.errors import FormatError, UsageError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_come_back(value):
    assert repr(values.loads(values.dumps(value))) == repr(value)  # nan, -0.0 and types included


@pytest.mark.parametrize(
    "value",
    [
        (0.9, 0.999),
        OrderedDict([("b", 1), ("a", (2,))]),
        {1: "a", (2, None): {3, 4}},
        torch.Size([2, 3]),
        torch.bfloat16,
        torch.device("cuda", 1),
        np.random.default_rng(0).bit_generator.state,
        ("\ud800", 2**300, -0.0, math.inf),
    ],
    ids=str,
)
def test_other_kinds_come_back(value):
    came = values.loads(values.dumps(value))
    assert came == value
    assert repr(came) == repr(value)


@pytest.mark.parametrize(
    "x", [np.arange(5, dtype=">i4"), np.array(2.5, "f4"), np.float64(0.1), np.bool_(True)], ids=repr
)
def test_arrays_come_back(x):
    came = values.loads(values.dumps([x]))[0]
    assert type(came) is type(x)
    assert came.shape == x.shape
    assert (came == x).all()
    assert came.dtype == x.dtype.newbyteorder("<")


def test_tensors_come_back():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    (came, text) = values.loads(values.dumps((x, "after")))
    assert torch.equal(came, x)
    assert came.dtype == x.dtype
    assert text == "after"


@pytest.mark.parametrize(
    "value",
    [object(), Fraction(1, 2), len, defaultdict(int), namedtuple("Pair", "a b")(1, 2), np.array(["a", None]), 10**5000],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused(value):
    with pytest.raises(UsageError):
        values.dumps([value])


def test_endless_nesting_is_refused():
    value: list = []
    value.append(value)
    with pytest.raises(UsageError):
        values.dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{}",
        b'{"tuple": [], "set": []}',
        b'{"pickle": "gASVJAAAAA=="}',
        b'{"tuple": 3}',
        b'{"dict": [[1]]}',
        b'{"dict": [[[1], 2]]}',
        b'{"set": [{"dict": []}]}',
        b'{"numpy.ndarray": 3}',
        b'{"bytes": "???"}',
        b'{"bytes": 3}',
        b'{"float": "one"}',
        b'{"complex": [1]}',
        b'{"torch.dtype": "load"}',
        b'{"torch.dtype": "__name__"}',
        b'{"torch.dtype": 3}',
        b'{"torch.device": "nowhere"}',
        b'{"torch.Size": [1e300]}',
        b'{"torch.Size": ["3"]}',
        b'{"torch.Tensor": "AAAA"}',
        b"[" * 100_000 + b"]" * 100_000,
        b"1" * 5000,
        b"\xff",
        json.dumps({"bytes": {"bytes": "AA=="}}).encode(),
        pickle.dumps(("a", 1)),
    ],
    ids=lambda text: repr(text[:30]),
)
def test_other_texts_are_damage(text):
    with pytest.raises(FormatError):
        values.loads(text)
