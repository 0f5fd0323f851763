"""Golden payloads of the wire kernels; ``python -m tests.golden.wire`` writes those that are missing.

Elements are made without a generator or a library function, so that every machine has the same ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from trimtab import kernels

FOLDER = Path(__file__).parent / "wire"
NUM = 333
KEY = 0x0123456789ABCDEF


def elements(seed: int = 1) -> np.ndarray:
    """Return float32 of many magnitudes; the second 64 are zero but for a NaN in every other array."""
    k = np.arange(NUM, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(seed * 40503)
    x = ((k >> 8).astype(np.int32) - (1 << 23)).astype(np.float32) * np.float32(2.0**-23)
    x *= np.float32(2.0) ** ((k & 7).astype(np.float32) - 4)
    x[64:128] = 0
    x[200 if seed % 2 else 70] = np.nan
    return x


def bfloat16(x: np.ndarray) -> np.ndarray:
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def _groups(bits: int, group: int, order: int, key: int | None) -> Callable[[ModuleType, Any], Any]:
    def payload(twin: ModuleType, there: Callable[[np.ndarray], Any]) -> Any:
        out = there(np.zeros(twin.payload_bytes(NUM, bits, group, order), np.uint8))
        twin.encode(there(elements()), out, bits, group, order, key)
        return out

    return payload


def _sum(twin: ModuleType, there: Callable[[np.ndarray], Any]) -> Any:
    rows = there(np.zeros((3, twin.payload_bytes(NUM, 8, 128, 32)), np.uint8))
    for r in range(3):
        twin.encode(there(elements(2 * r)), rows[r], 8, 128, 32, KEY + r)
    out = there(np.zeros(twin.payload_bytes(NUM, 4, 64, 32), np.uint8))
    twin.decode_sum_encode(rows, out, NUM, 8, 128, 4, 64, 32, KEY)
    return out


def _difference(twin: ModuleType, there: Callable[[np.ndarray], Any]) -> Any:
    out = there(np.zeros(twin.payload_bytes(NUM, 4, 2048, 0), np.uint8))
    twin.encode_difference(there(elements(4)), there(bfloat16(elements(2))), out, 4, 2048, KEY)
    return out


def _float8(format: str, scales: int, order: int, target: float) -> Callable[[ModuleType, Any], Any]:
    def payload(twin: ModuleType, there: Callable[[np.ndarray], Any]) -> Any:
        out = there(np.zeros(twin.payload_bytes(NUM, 64, scales), np.uint8))
        twin.encode(there(bfloat16(elements())), out, format, 64, order, scales, target)
        return out

    return payload


CASES: dict[str, Callable[[ModuleType, Any], Any]] = {
    **{f"groups-{bits}bits": _groups(bits, 64, 0, KEY) for bits in range(2, 9)},
    "groups-nearest": _groups(4, 128, 0, None),
    "groups-hadamard32": _groups(4, 128, 32, KEY),
    "groups-hadamard512": _groups(6, 512, 512, KEY),
    "groups-sum": _sum,
    "groups-difference": _difference,
    "float8-e4m3-two": _float8("e4m3", 2, 64, 448.0),
    "float8-e5m2-two": _float8("e5m2", 2, 64, 57344.0),
    "float8-e4m3-one": _float8("e4m3", 1, 0, 448.0),
    "float8-e5m2-one": _float8("e5m2", 1, 64, 448.0),
}
"""Name, which begins with the operation -> what makes a payload with a twin, given how arrays get to it."""


def main() -> None:
    """Write the payloads that are missing; none is ever overwritten."""
    FOLDER.mkdir(exist_ok=True)
    for name, payload in CASES.items():
        path = FOLDER / f"{name}.bin"
        if not path.exists():
            with kernels.backend("ref"):
                path.write_bytes(payload(kernels.load(name.split("-")[0]), np.copy).tobytes())
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
