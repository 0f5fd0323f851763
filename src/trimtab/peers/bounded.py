"""Error-bounded peers: SZ3, zfp and SPERR."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from trimtab.bounds import PSNR, Abs, Bound, Lossless, Rel, value_range
from trimtab.peers.peer import Encoded, Peer


class _BoundedPeer(Peer):
    """The part that error-bounded peers share: which arrays and bounds they take."""

    lossless: ClassVar[bool] = False
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")

    @property
    def takes_psnr(self) -> bool:
        """Whether it is asked for a PSNR, and not for a bound on every element."""
        return False

    def refuses(self, x: np.ndarray, bound: Bound = Lossless()) -> str | None:
        if not isinstance(bound, PSNR if self.takes_psnr else Abs | Rel):
            asked = "a PSNR" if self.takes_psnr else "an absolute or range-relative bound"
            return f"{self.name} is run with {asked}; got {bound}"
        if x.dtype.name not in self.dtypes or not x.dtype.isnative:
            return f"{self.name} takes {' and '.join(self.dtypes)}; the array is {x.dtype}"
        if x.size == 0:
            return f"{self.name} takes no empty arrays"
        if not self.takes_psnr and _tolerance(x, bound) == 0:
            return f"{self.name} needs a positive error bound; all elements are equal, so {bound} allows none"
        return None


def _tolerance(x: np.ndarray, bound: Bound) -> float:
    """Return the absolute error that `bound` allows on `x`."""
    assert isinstance(bound, Abs | Rel)
    if isinstance(bound, Abs):
        return bound.value
    with np.errstate(invalid="ignore"):
        low, high = float(x.min()), float(x.max())
    # the slow way only where it matters, so that the peer is not charged for it
    return bound.value * (high - low if math.isfinite(low) and math.isfinite(high) else value_range(x))


@dataclass(frozen=True, repr=False)
class SZ3(_BoundedPeer):
    """SZ3 (Liang et al., IEEE Transactions on Big Data, 2023), through pysz."""

    algorithm: Literal["INTERP_LORENZO", "LORENZO_REG", "NOPRED"] = "INTERP_LORENZO"
    package: ClassVar[str] = "pysz"
    module: ClassVar[str] = "pysz.sz"

    @property
    def name(self) -> str:
        return {"INTERP_LORENZO": "sz3", "LORENZO_REG": "sz3-lorenzo", "NOPRED": "sz3-nopred"}[self.algorithm]

    @property
    def setting(self) -> str:
        default = " (its default)" if self.algorithm == "INTERP_LORENZO" else ""
        return f"{self.algorithm}{default}, absolute bound, 1 thread"

    def compress(self, x: np.ndarray, bound: Bound = Lossless()) -> Encoded:
        pysz = self.load()
        grid = np.ascontiguousarray(np.atleast_1d(x))
        config = pysz.szConfig(grid.shape)
        config.errorBoundMode = pysz.szErrorBoundMode.ABS
        config.absErrorBound = _tolerance(x, bound)
        config.cmprAlgo = getattr(pysz.szAlgorithm, self.algorithm)
        data, _ = pysz.sz.compress(grid, config)
        return Encoded(data, data.nbytes, x.dtype, x.shape)

    def decompress(self, encoded: Encoded) -> np.ndarray:
        y, _ = self.load().sz.decompress(encoded.data, encoded.dtype, encoded.shape or (1,))
        return y.reshape(encoded.shape)


@dataclass(frozen=True, repr=False)
class ZFP(_BoundedPeer):
    """zfp (Lindstrom, IEEE TVCG, 2014), fixed-accuracy mode."""

    package: ClassVar[str] = "zfpy"
    module: ClassVar[str] = "zfpy"

    @property
    def name(self) -> str:
        return "zfp"

    @property
    def setting(self) -> str:
        return "fixed accuracy at the absolute bound, 1 thread"

    def refuses(self, x: np.ndarray, bound: Bound = Lossless()) -> str | None:
        if x.ndim > 4:
            return f"zfp takes up to 4 axes; the array has {x.ndim}"
        refusal = super().refuses(x, bound)
        if refusal is None and not np.isfinite(x).all():
            return "zfp takes no NaN or infinity"
        return refusal

    def compress(self, x: np.ndarray, bound: Bound = Lossless()) -> Encoded:
        grid = np.ascontiguousarray(np.atleast_1d(x))
        data = self.load().compress_numpy(grid, tolerance=_tolerance(x, bound))
        return Encoded(data, len(data), x.dtype, x.shape)

    def decompress(self, encoded: Encoded) -> np.ndarray:
        return self.load().decompress_numpy(encoded.data).reshape(encoded.shape)


@dataclass(frozen=True, repr=False)
class SPERR(_BoundedPeer):
    """SPERR (Li, Lindstrom and Clyne, IPDPS 2023), as the HDF5 filter of hdf5plugin: one chunk of a file in memory.

    Mode "psnr" corrects no outliers. It aims at a PSNR and may miss it on either side.
    """

    mode: Literal["absolute", "psnr"] = "absolute"
    package: ClassVar[str] = "hdf5plugin"
    module: ClassVar[str] = "hdf5plugin"

    @property
    def name(self) -> str:
        return "sperr" if self.mode == "absolute" else "sperr-psnr"

    @property
    def takes_psnr(self) -> bool:
        return self.mode == "psnr"

    @property
    def setting(self) -> str:
        asked = "absolute bound" if self.mode == "absolute" else "PSNR as the target"
        return f"{asked}, one chunk, 1 thread; HDF5's frame is not counted"

    def load(self) -> Any:
        importlib.import_module("h5py")
        return super().load()

    def refuses(self, x: np.ndarray, bound: Bound = Lossless()) -> str | None:
        refusal = super().refuses(x, bound)
        if refusal is not None:
            return refusal
        if len(_grid(x.shape)) not in (2, 3):
            return f"sperr takes arrays of 2 or 3 axes longer than 1; the array is {x.shape}"
        if x.nbytes >= 2**32:
            return f"a chunk of HDF5 has less than 4 GiB; the array has {x.nbytes} bytes"
        return None if np.isfinite(x).all() else "sperr takes no NaN or infinity"

    def compress(self, x: np.ndarray, bound: Bound = Lossless()) -> Encoded:
        with self._file() as file:
            dataset = self._dataset(file, x.dtype, _grid(x.shape), **_quality(x, bound))
            dataset[...] = x.reshape(dataset.shape)
            dataset.flush()
            _, data = dataset.id.read_direct_chunk((0,) * dataset.ndim)
        return Encoded(data, len(data), x.dtype, x.shape)

    def decompress(self, encoded: Encoded) -> np.ndarray:
        with self._file() as file:
            dataset = self._dataset(
                file, encoded.dtype, _grid(encoded.shape), absolute=1.0
            )  # the chunk knows its bound
            dataset.id.write_direct_chunk((0,) * dataset.ndim, encoded.data)
            return dataset[...].reshape(encoded.shape)

    @staticmethod
    def _file() -> Any:
        h5py = importlib.import_module("h5py")
        return h5py.File.in_memory()

    def _dataset(self, file: Any, dtype: np.dtype, shape: tuple[int, ...], **asked: float) -> Any:
        return file.create_dataset("x", shape, dtype, chunks=shape, **self.load().Sperr(**asked))


def _quality(x: np.ndarray, bound: Bound) -> dict[str, float]:
    """Return what SPERR's filter is asked for."""
    return (
        {"peak_signal_to_noise_ratio": bound.value} if isinstance(bound, PSNR) else {"absolute": _tolerance(x, bound)}
    )


def _grid(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its axes of length 1."""
    return tuple(n for n in shape if n > 1)
