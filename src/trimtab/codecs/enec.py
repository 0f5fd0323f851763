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
- tensors of one axis are packed too.

The entry
=========
`params.layout` names one of three layouts. N is the number of elements in C order; numbers are little-endian; a complex
number counts as its two parts. Small arrays, and those that would not shrink, are stored by codec "raw".

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

from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec
import numpy as np

from trimtab.bounds import Bound, Lossless
from trimtab.codecs.codec import describe
from trimtab.codecs.enec_device import decode_escape_tensor, encode_escape_tensor
from trimtab.codecs.enec_escape import CHUNK, EscapeParams, encode_escape, escape_decoder
from trimtab.codecs.enec_halving import (
    HalvingParams,
    check_published,
    encode_halving,
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
from trimtab.errors import Corrupt
from trimtab.packed import Header, Packed

if TYPE_CHECKING:
    import torch

__all__ = ["ENEC", "HalvingParams", "published_bits", "search_params", "unmasked_groups"]

_SMALL = {"fast": 1024, "ratio": 400, "paper": 1024}  # elements below which coding is not worth its time and tables
_OVERHEAD = 64  # bytes by which the header of an entry outgrows that of a raw one, about


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

    >>> x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    >>> packed = ENEC().encode(x)
    >>> packed.num_bytes < x.nbytes, np.array_equal(ENEC().decode(packed), x)
    (True, True)
    """

    id: ClassVar[str] = "enec"
    fixed_size: ClassVar[bool] = False

    mode: Literal["fast", "ratio", "paper"] = "fast"

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
        flat = np.ascontiguousarray(x, numpy_dtype(name)).reshape(-1)
        if not flat.flags.aligned:
            flat = flat.copy()
        thorough = self.mode == "ratio"
        encoded = None
        if self.mode == "paper":
            encoded = encode_halving(flat)
        elif name == "bfloat16" and not thorough:
            encoded = encode_escape(flat)
        else:
            encoded = encode_leading(flat, thorough)
        params, buffers = encoded or encode_planes(flat, thorough)
        if sum(buffer.size for buffer in buffers.values()) + _OVERHEAD >= flat.nbytes:
            return Raw().encode(x, bound)
        header = Header(
            codec=describe(self), bound=bound, dtype=name, shape=x.shape, params=msgspec.to_builtins(params)
        )
        return Packed(header, buffers)

    def decode(self, packed: Packed, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return the array, bit for bit.

        Raises:
            Corrupt: params or buffers contradict each other.
            ShapeError: `out` does not fit.
        """
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
        flat = y.reshape(-1)
        target = flat if flat.flags.aligned else np.empty_like(flat)
        decode(target)
        if target is not flat:
            flat[...] = target
        return y

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
