"""Embedding: vectors of embedding tables within an error bound (dual-level adaptive lossy compression, SC 2024).

"Accelerating Communication in Deep Learning Recommendation Model Training with Dual-Level Adaptive Lossy Compression"
(SC 2024, arXiv 2407.04272) shrinks the all-to-all of looked-up vectors; `trimtab.comm.EmbeddingExchange` does. This is
the codec that it sends with, for arrays at rest: equal vectors are stored once, elements as small integers by their
frequency. Differences from the artifact (allenfengjr/dlrm_comp and ICS23-GPULZ):

- bounds are absolute or relative to the range of the whole array, kept strictly and verified; the artifact's are
  relative to each slice, and may be missed by rounding;
- beside vector-LZ and Huffman there is an encoder that finds equal vectors anywhere in a slice, and codes by their
  frequency both the vectors and which of them each row is; it usually wins. Integers of up to 4 bits are coded several
  at a time;
- vector-LZ takes the nearest equal vector of the 255 before, not the longest match, and packs literals to the bits
  that they need, where the artifact takes 32 for an element;
- sizes and element types are not fixed when a kernel is compiled; every payload is checked when it is read.

The entry
=========
The array is a matrix whose columns are its last axis, if it has two axes or more and the last has at most 4096
elements, else a single column. Slices of ``max(1, 2^20 / columns)`` rows, rounded down, the last one shorter, are
payloads of `trimtab.codecs.embedding_slice`: ``data`` (uint8) holds them one after another, ``sizes`` (uint64) the
bytes of each. There are no params.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.bounds import Abs, Bound, Lossless, Rel, value_range
from trimtab.codecs.codec import describe
from trimtab.codecs.embedding_choice import best_encoder, try_encoders
from trimtab.codecs.embedding_slice import DTYPES, ENCODERS, LOSSLESS, Encoder, Slice, decode_slice
from trimtab.dtypes import dtype_name, numpy_dtype
from trimtab.errors import BoundError, BoundViolated, Corrupt, ShapeError
from trimtab.packed import Digest, Header, Packed

_MAX_COLUMNS = 4096
_SLICE = 1 << 20


class Embedding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="embedding"):
    """Pack vectors, of which many are alike, without loss or within `Abs` or `Rel`.

    >>> table = np.random.default_rng(0).uniform(-0.05, 0.05, (1000, 16)).astype(np.float32)
    >>> looked_up = table[np.random.default_rng(1).zipf(1.5, 4096) % 1000]
    >>> packed = Embedding(bandwidth=1e6).encode(looked_up, Abs(0.01))
    >>> packed.num_bytes < looked_up.nbytes / 40, Abs(0.01).allows(looked_up, Embedding().decode(packed))
    (True, True)
    """

    id: ClassVar[str] = "embedding"
    fixed_size: ClassVar[bool] = False

    encoder: Literal["auto", "exact", "unique", "entropy", "vector_lz", "dedup"] = "auto"
    """How; "auto" takes the one that should make a transfer of the array shortest, judged on its first slice."""
    bandwidth: Annotated[float, msgspec.Meta(gt=0)] = 125e6
    """Of that transfer in bytes a second. The lower it is, the more a ratio is worth."""

    def encode(self, x: np.ndarray, bound: Bound = Lossless()) -> Packed:
        """Pack float32, float16 or bfloat16 of any shape and strides.

        Raises:
            BoundError: the bound is neither `Lossless`, `Abs` nor `Rel`.
            ShapeError: the dtype is another one.
        """
        if not isinstance(bound, Lossless | Abs | Rel):
            raise BoundError(f"codec 'embedding' promises Lossless, Abs or Rel; got {bound} at $.bound")
        name = dtype_name(x.dtype)
        if name not in DTYPES:
            raise ShapeError(f"codec 'embedding' takes {', '.join(DTYPES)}; got {name}")
        matrix = _as_matrix(np.ascontiguousarray(x, numpy_dtype(name)).reshape(x.shape))
        limit = absolute_limit(bound, matrix)
        slices = [Slice(part, limit) for part in _cut(matrix)]
        encoder = self._choose(slices, limit)
        payloads = [np.empty(0, np.uint8)] * len(slices)

        def work(k: int) -> None:
            payloads[k] = slices[k].encode(encoder)

        kernels.for_each(work, len(slices))
        digest, y = Digest(), np.empty((min(len(matrix), _rows(matrix)), matrix.shape[1]), matrix.dtype)
        promise = Abs(limit) if limit > 0 else Lossless()
        for part, payload in zip(slices, payloads, strict=True):
            decoded = y[: len(part.x)]
            decode_slice(payload, decoded)
            if not promise.allows(part.x, decoded):
                raise BoundViolated(f"codec 'embedding' broke {bound}; please report this array")
            digest.add(decoded)
        header = Header(codec=describe(self), bound=bound, dtype=name, shape=x.shape)
        sizes = np.array([payload.size for payload in payloads], "<u8")
        data = np.concatenate([np.empty(0, np.uint8), *payloads])
        return Packed(header, {"data": data, "sizes": sizes}, [digest.value])

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the array.

        Raises:
            Corrupt: the buffers are not those of such an array.
        """
        header = packed.header
        if header.dtype not in DTYPES:
            raise Corrupt(f"codec 'embedding' holds {', '.join(DTYPES)}; got {header.dtype}")
        data = packed.buffer("data")
        num_columns = _num_columns(header.shape)
        num_rows = header.num_elements // num_columns if num_columns else 0
        each = max(_SLICE // max(num_columns, 1), 1)
        sizes = packed.buffer("sizes", "uint64", -(-num_rows // each)).tolist()
        if sum(sizes) != data.size:
            raise Corrupt(f"slices of {sum(sizes)} bytes in all; there are {data.size}")
        y = packed.output(out)
        parts = _cut(_as_matrix(y))
        starts = np.cumsum([0, *sizes]).tolist()

        def work(k: int) -> None:
            decode_slice(data[starts[k] : starts[k + 1]], parts[k])

        kernels.for_each(work, len(parts))
        return y

    def pieces(self, y: np.ndarray) -> list[np.ndarray]:
        """Return the array as its only piece."""
        return [y]

    def _choose(self, slices: list[Slice], limit: float) -> Encoder:
        if self.encoder != "auto" or not slices:
            return "exact" if self.encoder == "auto" or (not limit and self.encoder not in LOSSLESS) else self.encoder
        return best_encoder(try_encoders(slices[:1], ENCODERS if limit > 0 else LOSSLESS), self.bandwidth)


def absolute_limit(bound: Lossless | Abs | Rel, x: np.ndarray) -> float:
    """Return the error that every element of `x` may have; 0 for none."""
    if isinstance(bound, Rel):
        return min(bound.value * value_range(x), 2.0**127)
    return bound.value if isinstance(bound, Abs) else 0.0


def _num_columns(shape: tuple[int, ...]) -> int:
    return shape[-1] if len(shape) > 1 and shape[-1] <= _MAX_COLUMNS else 1


def _as_matrix(x: np.ndarray) -> np.ndarray:
    num_columns = _num_columns(x.shape)
    return x.reshape(x.size // num_columns if num_columns else 0, num_columns)


def _rows(matrix: np.ndarray) -> int:
    """Return how many rows a slice has."""
    return max(_SLICE // max(matrix.shape[1], 1), 1)


def _cut(matrix: np.ndarray) -> list[np.ndarray]:
    return [matrix[start : start + _rows(matrix)] for start in range(0, len(matrix), _rows(matrix))]
