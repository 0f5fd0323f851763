"""The halving layout: ENEC as published (Yang et al., ISCA 2026, arXiv 2604.03298), with its parameter search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.errors import Corrupt, ShapeError
from trimtab.packed import Packed

CHUNK = 1 << 18
"""Elements whose high bits are collected together: 16 of the kernel's blocks."""

MANTISSA_BITS = {"bfloat16": 7, "float16": 10, "float32": 23}
"""dtypes that the paper treats -> bits of their mantissa."""

GROUP = 16
"""Elements that share a mask bit (L)."""

_CHUNKS_A_THREAD = 4
_BYTE_PLANES = {"bfloat16": 1, "float16": 1, "float32": 3}  # of sign and mantissa; float16 has three bits more
_HALF_EXTRA = 3


class HalvingParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="layout", tag="halving"
):
    """The paper's b (`base`), n (`bits`, up to 8), m (`low_bits`, up to n) and L (`group`, always 16)."""

    base: Annotated[int, msgspec.Meta(ge=0, le=255)]
    bits: Annotated[int, msgspec.Meta(ge=0, le=8)]
    low_bits: Annotated[int, msgspec.Meta(ge=0, le=8)]
    group: Annotated[int, msgspec.Meta(ge=16, le=16)] = GROUP

    def __post_init__(self) -> None:
        if self.low_bits > self.bits:
            raise ValueError(f"low_bits is {self.low_bits}; at most bits = {self.bits}")

    def covers(self, exponents: np.ndarray) -> bool:
        """Return whether all of these exponents (uint8, at least one) come back from their mapped values."""
        above = 1 << self.bits >> 1
        below = (1 << self.bits) - 1 - above
        return self.base - int(exponents.min()) <= below and int(exponents.max()) - self.base <= above


def exponent_counts(x: np.ndarray) -> np.ndarray:
    """Return how often each exponent occurs (int64[256]) in flat contiguous bfloat16, float16 or float32 elements."""
    return _histogram(_split(x, x.dtype.name)[1])


def search_params(counts: np.ndarray) -> HalvingParams:
    """Return the paper's parameters for these exponent counts (int64[256]).

    First b and n by the smallest sum of mapped values (eq. 1 and 2), then m by the smallest expected size (eq. 3
    and 4). One exponent alone needs no bits.
    """
    seen = np.flatnonzero(counts)
    low, high = int(seen[0]), int(seen[-1])
    if low == high:
        return HalvingParams(base=low, bits=0, low_bits=0)
    # strictly between the ends, as published; two neighbours have nothing between them
    bases = np.arange(low + 1, high) if high - low > 1 else np.array([low, high])
    _, lengths = np.frexp(np.maximum(bases - low, high - bases - 1))  # of the integers in bits
    possible = lengths < 8
    bases, widths = bases[possible], lengths[possible] + 1
    distances = ((bases[:, None] - seen) % (1 << widths)[:, None]) @ counts[seen]
    best = int(np.argmin(distances))
    base, bits = int(bases[best]), int(widths[best])
    share = counts[seen] / counts.sum()
    mapped = (base - seen) % (1 << bits)
    sizes = [(1 / GROUP + bits + (m - bits) * float(share[mapped < 1 << m].sum()) ** GROUP, m) for m in range(1, bits)]
    return HalvingParams(base=base, bits=bits, low_bits=min(sizes)[1] if sizes else bits)


def published_bits(dtype: str, params: HalvingParams, unmasked: float) -> float:
    """Return the bits an element that the paper's size model gives, without headers and padding.

    `unmasked` is the fraction of groups whose mask bit is 0: expected by the model, or measured by `unmasked_groups`.
    """
    mask = 1 / params.group if params.bits > params.low_bits else 0.0
    exponent = mask + params.bits + (params.low_bits - params.bits) * unmasked
    return 1 + MANTISSA_BITS[dtype] + exponent


def unmasked_groups(packed: Packed) -> float:
    """Return the fraction of groups of an array in the halving layout that store no high bits."""
    params = packed.params(HalvingParams)
    parts = _Parts(packed.header.dtype, packed.header.num_elements, params)
    masks = packed.buffer("stream")[parts.low_end : parts.masks_end]
    return 1 - int(np.bitwise_count(masks).sum()) / (8 * masks.size) if masks.size else 1.0


def check_published(dtype: str) -> None:
    """Raise ShapeError where the paper does not treat a dtype."""
    if dtype not in MANTISSA_BITS:
        raise ShapeError(
            f"mode 'paper' packs {', '.join(MANTISSA_BITS)}, got {dtype}; "
            "use ENEC(), whose mode 'escape' takes any dtype"
        )


def encode_halving(x: np.ndarray, given: HalvingParams | None) -> tuple[HalvingParams, dict[str, np.ndarray]]:
    """Encode flat contiguous bfloat16, float16 or float32 elements, at least one, with the `given` params if they fit.

    The map has an inverse only where all exponents lie within ``2**bits``; params that do not fit are searched for.
    """
    halving, name = kernels.load("halving"), x.dtype.name
    num_elements = x.size
    rest, exponents = _split(x, name)
    params = given if given is not None and given.covers(exponents) else search_params(_histogram(exponents))
    parts = _Parts(name, num_elements, params)
    fixed = np.empty(parts.masks_end, np.uint8)
    fixed[: parts.rest_end] = rest
    low, masks = fixed[parts.rest_end : parts.low_end], fixed[parts.low_end :]
    num_chunks = -(-num_elements // CHUNK)
    high_bits = params.bits - params.low_bits
    pieces: list[np.ndarray] = [fixed] * num_chunks

    def encode_chunks(group: int) -> None:
        for i in range(group * _CHUNKS_A_THREAD, min((group + 1) * _CHUNKS_A_THREAD, num_chunks)):
            chunk = exponents[i * CHUNK : (i + 1) * CHUNK]
            high = np.empty(halving.high_bytes(halving.padded(chunk.size), high_bits), np.uint8)
            num_high = halving.encode(
                chunk,
                params.base,
                params.bits,
                params.low_bits,
                params.group,
                low[parts.low_slice(i)],
                masks[parts.mask_slice(i)],
                high,
            )
            pieces[i] = high[: halving.high_bytes(num_high, high_bits)].copy()  # lets the rest of `high` go

    kernels.for_each(encode_chunks, -(-num_chunks // _CHUNKS_A_THREAD))
    return params, {"stream": np.concatenate([fixed, *pieces])}


def halving_decoder(packed: Packed, params: HalvingParams) -> Callable[[np.ndarray], None]:
    """Check the buffer against the shape, and return what decodes it into flat contiguous elements.

    Raises:
        Corrupt: the dtype has no such layout, or the buffer has the wrong size.
    """
    halving, name = kernels.load("halving"), packed.header.dtype
    if name not in MANTISSA_BITS:
        raise Corrupt(f"the halving layout holds {', '.join(MANTISSA_BITS)}; the header says {name}")
    num_elements = packed.header.num_elements
    parts = _Parts(name, num_elements, params)
    stream = packed.buffer("stream")
    if stream.size < parts.masks_end:
        raise Corrupt(f"buffer 'stream' holds {stream.size} bytes; expected {parts.masks_end} and the high bits")
    low, masks = stream[parts.rest_end : parts.low_end], stream[parts.low_end : parts.masks_end]
    num_chunks = -(-num_elements // CHUNK)
    high_bits = params.bits - params.low_bits
    bounds = [parts.masks_end]
    for i in range(num_chunks):
        num_high = params.group * int(np.bitwise_count(masks[parts.mask_slice(i)]).sum())
        bounds.append(bounds[-1] + halving.high_bytes(num_high, high_bits))
    if bounds[-1] != stream.size:
        raise Corrupt(f"the masks say that buffer 'stream' ends at byte {bounds[-1]}; it has {stream.size}")

    def decode(y: np.ndarray) -> None:
        exponents = np.empty(y.size, np.uint8)

        def decode_chunks(group: int) -> None:
            for i in range(group * _CHUNKS_A_THREAD, min((group + 1) * _CHUNKS_A_THREAD, num_chunks)):
                halving.decode(
                    low[parts.low_slice(i)],
                    masks[parts.mask_slice(i)],
                    stream[bounds[i] : bounds[i + 1]],
                    params.base,
                    params.bits,
                    params.low_bits,
                    params.group,
                    exponents[i * CHUNK : (i + 1) * CHUNK],
                )

        kernels.for_each(decode_chunks, -(-num_chunks // _CHUNKS_A_THREAD))
        _merge(stream[: parts.rest_end], exponents, y, name)

    return decode


class _Parts:
    """Where the parts of a stream lie, all but the high bits, which the masks tell."""

    def __init__(self, name: str, num_elements: int, params: HalvingParams) -> None:
        halving = kernels.load("halving")
        self._low_of_chunk = halving.packed_bytes(CHUNK, params.low_bits)
        self._masks_of_chunk = halving.mask_bytes(CHUNK, params.bits, params.low_bits, params.group)
        self.rest_end = _BYTE_PLANES[name] * num_elements
        if name == "float16":
            self.rest_end += halving.packed_bytes(num_elements, _HALF_EXTRA)
        self.low_end = self.rest_end + halving.packed_bytes(num_elements, params.low_bits)
        self.masks_end = self.low_end + halving.mask_bytes(num_elements, params.bits, params.low_bits, params.group)

    def low_slice(self, chunk: int) -> slice:
        return slice(chunk * self._low_of_chunk, (chunk + 1) * self._low_of_chunk)

    def mask_slice(self, chunk: int) -> slice:
        return slice(chunk * self._masks_of_chunk, (chunk + 1) * self._masks_of_chunk)


def _histogram(exponents: np.ndarray) -> np.ndarray:
    counts = np.empty(256, np.int64)
    kernels.load("huffman").histogram(exponents, counts)
    return counts


def _split(x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return sign and mantissa as the stream starts with them, and the exponents as bytes."""
    planes = np.empty(x.nbytes, np.uint8)
    kernels.load("planes").split(x.view(f"<u{x.itemsize}"), name != "float16", planes)
    last = planes[planes.size - x.size :]
    if name != "float16":
        return planes[: planes.size - x.size], last
    halving = kernels.load("halving")
    extra = np.empty(halving.packed_bytes(x.size, _HALF_EXTRA), np.uint8)
    halving.pack(last >> 7 << 2 | last & 3, _HALF_EXTRA, extra)
    return np.concatenate([planes[: x.size], extra]), last >> 2 & 31


def _merge(rest: np.ndarray, exponents: np.ndarray, y: np.ndarray, name: str) -> None:
    planes = np.empty(y.nbytes, np.uint8)
    if name == "float16":
        extra = np.empty(y.size, np.uint8)
        kernels.load("halving").unpack(rest[y.size :], _HALF_EXTRA, extra)
        planes[: y.size] = rest[: y.size]
        planes[y.size :] = extra >> 2 << 7 | (exponents & 31) << 2 | extra & 3
    else:
        planes[: rest.size] = rest
        planes[rest.size :] = exponents
    kernels.load("planes").merge(planes, name != "float16", y.view(f"<u{y.itemsize}"))
