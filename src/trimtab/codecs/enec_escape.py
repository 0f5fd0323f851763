"""The escape layout of ENEC: short codes of bfloat16 exponents, as `trimtab.kernels.bitplanes` stores them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
import numpy as np

from trimtab import kernels
from trimtab.errors import Corrupt
from trimtab.kernels.bitplanes.ref import plane_bytes
from trimtab.packed import Packed

CHUNK = 1 << 18
"""Elements that are coded on their own, a multiple of the kernel's block."""

_CHUNKS_A_THREAD = 8  # chunks that one thread takes at a time: about a millisecond of work
_MAX_LISTED = 15
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
_Width = Annotated[int, msgspec.Meta(ge=2, le=4)]


class EscapeParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="layout", tag="escape"
):
    """What the decoder needs beside the buffers; see `trimtab.codecs.enec` for the meaning."""

    base: _Byte
    width: _Width
    next_width: _Width


def encode_escape(x: np.ndarray) -> tuple[EscapeParams, dict[str, np.ndarray]] | None:
    """Encode flat contiguous bfloat16 elements; None where this layout does not suit them."""
    counts, halves = np.empty(256, np.int64), x.view(np.uint16)
    kernels.load("bitplanes").survey(halves, sampling_step(halves.size), counts)
    chosen = choose_codes(counts)
    return None if chosen is None else (chosen[0], encode_with(x, *chosen))


def encode_with(x: np.ndarray, params: EscapeParams, listed: np.ndarray) -> dict[str, np.ndarray]:
    """Encode flat contiguous bfloat16 elements with these codes, whatever `choose_codes` would say."""
    bitplanes = kernels.load("bitplanes")
    halves = x.view(np.uint16)
    base, width, next_width = params.base, params.width, params.next_width
    num_planes = bitplanes.plane_bytes(halves.size, width)
    fixed = np.empty(halves.size + num_planes, np.uint8)
    signs, planes = fixed[: halves.size], fixed[halves.size :]
    num_chunks = -(-halves.size // CHUNK)
    table = np.empty((num_chunks, 2), "<u4")
    tails: list[np.ndarray] = [listed] * num_chunks

    def encode_chunks(group: int) -> None:
        for i in range(group * _CHUNKS_A_THREAD, min((group + 1) * _CHUNKS_A_THREAD, num_chunks)):
            start, stop = i * CHUNK, min((i + 1) * CHUNK, halves.size)
            at = bitplanes.plane_bytes(start, width)
            tail = np.empty(bitplanes.plane_bytes(stop - start, next_width) + stop - start, np.uint8)
            num_escapes, num_raw = bitplanes.encode(
                halves[start:stop], base, width, next_width, listed, signs[start:stop], planes[at:], tail
            )
            table[i] = num_escapes, num_raw
            used = tail[: bitplanes.plane_bytes(num_escapes, next_width) + num_raw]
            tails[i] = used if num_chunks == 1 else used.copy()  # lets the rest of `tail` go

    kernels.for_each(encode_chunks, -(-num_chunks // _CHUNKS_A_THREAD))
    escapes = np.concatenate([listed[: (1 << next_width) - 1], table.view(np.uint8).reshape(-1), *tails])
    return {"fixed": fixed, "escapes": escapes}


def choose_codes(counts: np.ndarray) -> tuple[EscapeParams, np.ndarray] | None:
    """Return the cheapest codes for the exponent counts of a sample, and the distances (uint8[15]) of the second one.

    None where this layout does not suit: an exponent holds more than half of the sample, or the sample does not shrink.
    """
    listed = np.empty(_MAX_LISTED, np.uint8)
    base, width, next_width, price = kernels.load("bitplanes").choose(counts, listed)
    num_sampled = int(counts.sum())
    if 2 * int(counts.max()) > num_sampled or price > 31 * num_sampled:  # price: quarter bits, 32 a byte
        return None
    return EscapeParams(base=base, width=width, next_width=next_width), listed


def escape_decoder(packed: Packed, params: EscapeParams) -> Callable[[np.ndarray], None]:
    """Check the buffers against the shape, and return what decodes them into flat contiguous bfloat16.

    Raises:
        Corrupt: a buffer has the wrong size, or the parts contradict each other.
    """
    bitplanes = kernels.load("bitplanes")
    if packed.header.dtype != "bfloat16":
        raise Corrupt(f"the escape layout holds bfloat16; the header says {packed.header.dtype}")
    num_halves = packed.header.num_elements
    width, next_width = params.width, params.next_width
    num_planes = bitplanes.plane_bytes(num_halves, width)
    fixed = packed.buffer("fixed", "uint8", num_halves + num_planes)
    escapes = packed.buffer("escapes")
    signs, planes = fixed[:num_halves], fixed[num_halves:]
    listed, table, bounds = read_table(escapes, num_halves, next_width)
    num_chunks = len(table)

    def decode(y: np.ndarray) -> None:
        halves = y.view(np.uint16)

        def decode_chunks(group: int) -> None:
            for i in range(group * _CHUNKS_A_THREAD, min((group + 1) * _CHUNKS_A_THREAD, num_chunks)):
                start, stop = i * CHUNK, min((i + 1) * CHUNK, halves.size)
                at, end = bitplanes.plane_bytes(start, width), bitplanes.plane_bytes(stop, width)
                tail, num_escapes = escapes[bounds[i] : bounds[i + 1]], table[i][0]
                if not bitplanes.decode(
                    signs[start:stop],
                    planes[at:end],
                    tail,
                    num_escapes,
                    params.base,
                    width,
                    next_width,
                    listed,
                    halves[start:stop],
                ):
                    raise Corrupt(f"chunk {i} of {num_chunks} claims {num_escapes} escapes; its planes say otherwise")

        kernels.for_each(decode_chunks, -(-num_chunks // _CHUNKS_A_THREAD))

    return decode


def read_table(
    escapes: np.ndarray, num_elements: int, next_width: int
) -> tuple[np.ndarray, list[list[int]], list[int]]:
    """Return the listed distances, each chunk's [escapes, unlisted ones], and where the chunks start and end.

    Raises:
        Corrupt: the buffer has no room for the table, or does not end where the table says.
    """
    num_chunks = -(-num_elements // CHUNK)
    num_listed = (1 << next_width) - 1
    table_end = num_listed + 8 * num_chunks
    if escapes.size < table_end:
        raise Corrupt(f"buffer 'escapes' holds {escapes.size} bytes; its table alone takes {table_end}")
    table = np.frombuffer(escapes[num_listed:table_end].tobytes(), "<u4").reshape(num_chunks, 2).tolist()
    bounds = [table_end]
    for num_escapes, num_raw in table:
        bounds.append(bounds[-1] + plane_bytes(num_escapes, next_width) + num_raw)
    if bounds[-1] != escapes.size:
        raise Corrupt(f"the chunks of buffer 'escapes' end at byte {bounds[-1]} of {escapes.size}")
    return escapes[:num_listed], table, bounds


def sampling_step(num_elements: int) -> int:
    """Return the distance of the runs of 64 to look at: 1/32 of the array, but 4 Ki to 32 Ki elements.

    It is odd, so that the runs do not all hit the same columns of a matrix.
    """
    num_runs = min(max(num_elements >> 11, 64), 512)
    return num_elements // num_runs | 1
