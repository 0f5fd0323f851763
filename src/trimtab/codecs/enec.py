"""ENEC: weights in fewer bytes, bit for bit (Yang et al., "ENEC", ISCA 2026, arXiv 2604.03298).

Trained weights use few of their exponents. Mode "fast", the default, keeps the paper's idea, a linear map and codes of
fixed length that vector units like, and changes how rare exponents are stored; mode "ratio" codes exponents by their
frequency; mode "paper" is ENEC as published.

Differences of modes "fast" and "ratio":

- of bfloat16, "fast" codes have 2 to 4 bits and an escape for rare exponents, where the paper widens groups of 16: an
  exact zero in a tensor costs a byte, not two bits an element everywhere;
- "ratio" codes exponents together with the first two or three bits of the mantissa, which depend on them, with
  Huffman's codes for every 2**18 elements; so does "fast" with float16 and float32;
- other dtypes, and floats whose last bits are not close to random, are stored as byte planes, of which each is plain,
  Huffman coded or, in mode "ratio", packed by zstd.

Mode "ratio" codes the symbols of float16 and float32 with asymmetric numeral systems: they are next to the entropy,
which Huffman's codes miss by half a percent of these elements, and take twice the time.

Differences of mode "paper":

- one kernel with b, n, m and L in the header, where the paper compiles one for each; 64-bit sizes;
- a tail is filled up to 128 elements, not to a block; high bits are collected per 2**18 elements, not per NPU core;
- no sizes per core are stored: the mask bits tell them;
- a tensor with one exponent stores none (the paper: n = m = L = 1); two neighbours and {0, 255}, on which the
  published search fails, take the same search with the ends as candidates, or b = 127 and n = 8;
- tensors of one axis are packed too;
- given parameters that cannot map all exponents of a tensor give way to a search for this one.

The entry
=========
`params.layout` names one of the layouts below, or "delta", which `trimtab.codecs.enec_delta` describes. N is the number
of elements in C order; numbers are little-endian; a complex number counts as its two parts. Small arrays, and those
that would not shrink, are stored by codec "raw".

"escape", only bfloat16 (`trimtab.kernels.bitplanes` defines codes, blocks, planes and the order of escapes).
params: ``base``, ``width`` w and ``next_width`` v, both 2 to 4. Chunks are 2**18 elements, the last one shorter.

- ``fixed``: N bytes ``sign << 7 | mantissa``, then the planes of all blocks: block k starts at byte
  ``N + 512 * w * k``, and a last block of n elements has planes of ``ceil(n / 8)`` bytes.
- ``escapes``: ``2**v - 1`` listed distances; for each chunk a uint32 E, its number of escapes, and a uint32 R, how many
  of them are not listed; then for each chunk the planes of its E second codes, in blocks like the first ones (the sum
  of ``v * ceil(n / 8)`` over the blocks), followed by its R distances.

"planes", any dtype (`trimtab.kernels.planes` defines the planes, of which floats wider than a byte are split with
`signed_float`; `trimtab.kernels.huffman` the blocks). No params. Chunks are 2**18 elements (parts of complex numbers),
the last one shorter; an element has P bytes.

- ``planes``: for each chunk and, within it, each of its P planes, a uint32: the bytes that the plane takes, below
  2**30, and in the two bits above its coding; then the planes in the same order. Coding 0: a plane that takes as many
  bytes as the chunk has elements is stored as it is, a smaller one is a Huffman block. Coding 1: a block of
  `trimtab.kernels.ans`, with all tokens in one row. Coding 2: a zstd frame that states its content size.

"leading", bfloat16, float16 and float32 (`trimtab.kernels.leading` defines symbols and rests; `low` is 5, 7 and 21).
params: ``base`` and ``span``. Chunks are 2**18 elements, the last one shorter.

- ``planes``: for each chunk the uint32 of its planes as above, the symbols being the first plane and those of the
  rests the others, and a uint32 more: the size of its tail. Then for each chunk its planes and its tail: six bits left
  over of the rests, in their blocks, and the tops of the escapes, uint16.

"halving", bfloat16, float16 and float32 (`trimtab.kernels.halving` defines the parts). params: ``base`` b, ``bits`` n,
``low_bits`` m and ``group`` L = 16.

- ``stream``: sign and mantissa, low bits, masks, high bits. Sign and mantissa: the planes that `trimtab.kernels.planes`
  gives, without the last, which is the exponent; of float16, split without `signed_float`, the first plane, then packed
  in 3 bits ``sign << 2 | top two bits of the mantissa``. Low bits and masks are those of all blocks. High bits are
  collected for each 2**18 elements anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec
import numpy as np

from trimtab.arrays import Array, as_numpy
from trimtab.bounds import Bound, Lossless
from trimtab.codecs.codec import describe
from trimtab.codecs.enec_delta import DeltaParams, delta_decoder, encode_delta
from trimtab.codecs.enec_device import decode_escape_tensor, encode_escape_tensor
from trimtab.codecs.enec_escape import CHUNK, EscapeParams, encode_escape, escape_decoder
from trimtab.codecs.enec_halving import (
    MANTISSA_BITS,
    HalvingParams,
    check_published,
    encode_halving,
    exponent_counts,
    halving_decoder,
    published_bits,
    search_params,
    unmasked_groups,
)
from trimtab.codecs.enec_planes import (
    LeadingParams,
    PlaneParams,
    encode_leading,
    encode_planes,
    planes_decoder,
)
from trimtab.codecs.raw import Raw
from trimtab.dtypes import dtype_name, numpy_dtype
from trimtab.errors import BaseError, Corrupt, UsageError
from trimtab.files import checksum
from trimtab.packed import Header, Packed, digest

if TYPE_CHECKING:
    import torch

__all__ = ["ENEC", "HalvingParams", "published_bits", "search_params", "unmasked_groups"]

_SMALL = {"fast": 1024, "ratio": 400, "paper": 1024}  # elements below which coding is not worth its time and tables
_OVERHEAD = 64  # bytes by which the header of an entry outgrows that of a raw one, about
_SURE = 16  # a difference that is so many times smaller than the array is taken unseen of other ways


_LAYOUTS: dict[str, type[EscapeParams | LeadingParams | PlaneParams | HalvingParams]] = {
    "escape": EscapeParams,
    "leading": LeadingParams,
    "planes": PlaneParams,
    "halving": HalvingParams,
}


class ENEC(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="id", tag="enec"):
    """Lossless coding of weights, and of any other array; every bound holds.

    `mode` "fast" takes every dtype, "ratio" too and makes them smaller in more time; "paper" is ENEC as published, for
    bfloat16, float16 and float32.

    Mode "paper" searches for the parameters of each array, which takes longer than packing a small one. With `params`,
    from `fit` or from the paper, that is left out wherever they fit; where an exponent is out of their range, the array
    gets its own. What is decoded is the same, but ill-chosen `params` pack badly.

    Raises:
        UsageError: `params` are out of their range, or the mode is not "paper".

    >>> x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    >>> packed = ENEC().encode(x)
    >>> packed.num_bytes < x.nbytes, np.array_equal(ENEC().decode(packed), x)
    (True, True)
    """

    id: ClassVar[str] = "enec"
    fixed_size: ClassVar[bool] = False

    mode: Literal["fast", "ratio", "paper"] = "fast"
    params: HalvingParams | None = None

    def __post_init__(self) -> None:
        if self.params is None:
            return
        if self.mode != "paper":
            raise UsageError(f"params are those of mode 'paper'; mode {self.mode!r} takes none")
        try:
            params = msgspec.convert(msgspec.to_builtins(self.params), type=HalvingParams)
        except (msgspec.ValidationError, TypeError) as error:
            raise UsageError(f"bad params: {error}") from None
        msgspec.structs.force_setattr(self, "params", params)

    def fit(self, arrays: Iterable[Array]) -> ENEC:
        """Return this codec with the parameters that suit `arrays` together, to pack these or others without a search.

        Looked at are the bfloat16, float16 and float32 arrays of at least 1024 elements, NumPy's or torch's; float16
        has exponents of its own and cannot be mixed with the others.

        Raises:
            UsageError: the mode is not "paper", there is no such array, or float16 is mixed with others.

        >>> x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
        >>> codec = ENEC(mode="paper").fit([x])
        >>> codec.params
        HalvingParams(base=127, bits=5, low_bits=3, group=16)
        """
        if self.mode != "paper":
            raise UsageError(f"only mode 'paper' has parameters to fit, not mode {self.mode!r}")
        counts, names = np.zeros(256, np.int64), set[str]()
        for x in map(as_numpy, arrays):
            name = dtype_name(x.dtype)
            if name in MANTISSA_BITS and x.size >= _SMALL[self.mode]:
                names.add(name)
                counts += exponent_counts(_flat(x, numpy_dtype(name)))
        if not names:
            raise UsageError(f"none of the arrays is of {', '.join(MANTISSA_BITS)} and {_SMALL[self.mode]} elements")
        if "float16" in names and len(names) > 1:
            raise UsageError(f"float16 has exponents of its own; fit the arrays of {', '.join(sorted(names))} apart")
        return ENEC(mode=self.mode, params=search_params(counts))

    def encode(self, x: np.ndarray, bound: Bound = Lossless()) -> Packed:
        """Pack an array of any shape, byte order and memory layout.

        Small arrays and those that would not shrink come back packed by `Raw`.

        Raises:
            ShapeError: arrays of this dtype cannot be stored, or not in mode "paper".
        """
        name = dtype_name(x.dtype)
        if self.mode == "paper":
            check_published(name)
        if x.size < _SMALL[self.mode]:
            return Raw().encode(x, bound)
        flat = _flat(x, numpy_dtype(name))
        thorough = self.mode == "ratio"
        encoded = None
        if self.mode == "paper":
            encoded = encode_halving(flat, self.params)
        elif name == "bfloat16" and not thorough:
            encoded = encode_escape(flat)
        else:
            encoded = encode_leading(flat, thorough)
        params, buffers = encoded or encode_planes(flat, thorough)
        if sum(buffer.size for buffer in buffers.values()) + _OVERHEAD >= flat.nbytes:
            return Raw().encode(x, bound)
        codec = describe(ENEC(mode=self.mode))  # the parameters that were used stand beside it
        header = Header(codec=codec, bound=bound, dtype=name, shape=x.shape, params=msgspec.to_builtins(params))
        return Packed(header, buffers)

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the array, bit for bit.

        Raises:
            Corrupt: params or buffers contradict each other.
            ShapeError: `out` does not fit.
        """
        if packed.header.base is not None:
            raise BaseError(f"this is the difference from an array with checksum {packed.header.base}; give that base")
        layout = packed.header.params.get("layout")
        if not isinstance(layout, str) or layout not in _LAYOUTS:
            raise Corrupt(f"unknown layout {layout!r} at $.params.layout; expected one of {', '.join(_LAYOUTS)}")
        params = packed.params(_LAYOUTS[layout])
        if packed.header.num_elements == 0:
            raise Corrupt("an empty array has no ENEC buffers; it is stored by codec 'raw'")
        if isinstance(params, EscapeParams):
            decode = escape_decoder(packed, params)
        elif isinstance(params, HalvingParams):
            decode = halving_decoder(packed, params)
        else:
            decode = planes_decoder(packed, params)
        y = packed.output(out)  # made only now that the buffers are known to fit the shape
        _fill(y, decode)
        return y

    def encode_difference(self, x: np.ndarray, base: np.ndarray) -> Packed:
        """Pack the difference of `x` from `base`, of the same dtype and shape; `x` alone where that is smaller.

        Raises:
            ShapeError: arrays of this dtype cannot be stored.
        """
        dtype = numpy_dtype(dtype_name(x.dtype))
        params, buffers = None, {}
        num_bytes = x.nbytes
        if x.size:
            params, buffers = encode_delta(_flat(x, dtype), _flat(base, dtype), self.mode == "ratio")
            num_bytes = sum(buffer.size for buffer in buffers.values()) + 2 * _OVERHEAD
        if params is None or _SURE * num_bytes > x.nbytes:
            alone = self.encode(x)
            if params is None or alone.num_bytes <= num_bytes:
                return alone
        header = Header(
            codec=describe(self),
            bound=Lossless(),
            dtype=dtype.name,
            shape=x.shape,
            params=msgspec.to_builtins(params),
            base=self.base_checksum(base),
        )
        return Packed(header, buffers)

    def decode_difference(self, packed: Packed, base: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the array that `encode_difference` packed; `base` is the same again.

        Raises:
            BaseError: it is another base, or this is not a difference.
            Corrupt: params or buffers contradict each other.
            ShapeError: `out` does not fit.
        """
        header = packed.header
        packed.params(DeltaParams)
        dtype = numpy_dtype(header.dtype)
        if dtype_name(base.dtype) != header.dtype or base.shape != header.shape:
            raise BaseError(f"it is {base.dtype} {list(base.shape)}, expected {dtype} {list(header.shape)}")
        if (found := self.base_checksum(base)) != header.base:
            raise BaseError(f"it has checksum {found}, expected {header.base}")
        decode = delta_decoder(packed)
        y = packed.output(out)
        _fill(y, lambda target: decode(target, _flat(base, dtype)))
        return y

    def base_checksum(self, base: np.ndarray) -> str:
        """Return the checksum of a base, in hex."""
        return checksum([digest(piece) for piece in self.pieces(_flat(base, base.dtype.newbyteorder("<")))])

    def encode_tensor(self, x: torch.Tensor, bound: Bound = Lossless()) -> Packed | None:
        """Pack a bfloat16 tensor on its device into what `encode` returns, or return None where that is for the host.

        The device works in mode "escape", if it has kernels, and on weights that suit this layout.
        """
        if self.mode != "fast" or str(x.dtype) != "torch.bfloat16" or x.numel() < _SMALL[self.mode]:
            return None
        encoded = encode_escape_tensor(x)
        if encoded is None:
            return None
        params, buffers = encoded
        if sum(buffer.numel() for buffer in buffers.values()) + _OVERHEAD >= x.nbytes:
            return None
        header = Header(
            codec=describe(self),
            bound=bound,
            dtype="bfloat16",
            shape=tuple(x.shape),
            params=msgspec.to_builtins(params),
        )
        return Packed(header, {name: buffer.cpu().numpy() for name, buffer in buffers.items()})

    def decode_tensor(self, packed: Packed, device: torch.device) -> torch.Tensor | None:
        """Unpack on a device what `encode` returned, or return None where that is for the host.

        Raises:
            Corrupt: params or buffers contradict each other.
        """
        if packed.header.params.get("layout") != "escape" or packed.header.num_elements == 0:
            return None
        return decode_escape_tensor(packed, packed.params(EscapeParams), device)

    def pieces(self, y: np.ndarray) -> list[np.ndarray]:
        """Return the chunks of 2**18 elements, in C order."""
        flat = y.reshape(-1)
        return [flat[start : start + CHUNK] for start in range(0, max(flat.size, 1), CHUNK)]


def _flat(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the elements in C order, contiguous and aligned, in the byte order of `dtype`."""
    flat = np.ascontiguousarray(x, dtype).reshape(-1)
    return flat if flat.flags.aligned else flat.copy()


def _fill(y: np.ndarray, decode: Callable[[np.ndarray], None]) -> None:
    """Let `decode` fill the flat, aligned elements of a C-contiguous array."""
    flat = y.reshape(-1)
    target = flat if flat.flags.aligned else np.empty_like(flat)
    decode(target)
    if target is not flat:
        flat[...] = target
