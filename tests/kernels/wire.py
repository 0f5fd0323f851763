"""Elements that tests of wire kernels send."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from trimtab.kernels.groups.ref import _narrow

SPECIALS = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-40, 1e-36, 3e38, -3e38, 1.0)


def bfloat16(x: np.ndarray) -> np.ndarray:
    return _narrow(x, np.dtype(np.uint16))


def elements(num: int, seed: int = 0, scale: float = 1.0, specials: bool = False) -> np.ndarray:
    """Return normal float32, some groups of them zero; with `specials`, ten per cent of these."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=num) * scale).astype(np.float32)
    x[num // 2 : num // 2 + 200] = 0
    if specials:
        at = rng.choice(num, num // 10, replace=False)
        x[at] = rng.choice(np.float32(SPECIALS), at.size)
    return x


def payload(num_bytes: int) -> np.ndarray:
    """Return a payload that holds something else before it is filled, at an odd address."""
    return np.full(num_bytes + 3, 0xA5, np.uint8)[3:]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Draw float32 or bfloat16 of many magnitudes, some of them special."""
    num = draw(st.integers(0, 700))
    x = elements(num, draw(st.integers(0, 99)), 10.0 ** draw(st.integers(-38, 30)), draw(st.booleans()))
    return bfloat16(x) if draw(st.booleans()) else x
