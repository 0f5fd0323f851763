"""Floats as packed integers of 2 to 8 bits with one scale a group, fast: see ref.py for the bytes.

Groups are handled a few at a time, so that all passes over them stay in the first cache. No fast-math and no
contraction: all machines must round alike.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from numba import types

from trimtab.kernels.groups.ref import SMALLEST, noise_key, padded, payload_bytes
from trimtab.kernels.hadamard.numba import _transform_at
from trimtab.kernels.jit import kernel
from trimtab.kernels.threads import for_each, num_threads
from trimtab.kernels.words import bits32, float32_of, load32, rounded_like, store32, widened

__all__ = [
    "decode",
    "decode_add",
    "decode_sum",
    "decode_sum_encode",
    "encode",
    "encode_difference",
    "noise_key",
    "padded",
    "payload_bytes",
]

_BLOCK = 4096
_THREADED = 1 << 19  # elements of a thread's piece at least
_ELEMENTS = (types.float32, types.uint16)
_SMALLEST = np.float32(SMALLEST)
_NAN, _INFINITY = 0x7FC00000, 0x7F800000
_ROUND = np.float32(1.5 * 2.0**23)  # adding it leaves the nearest integer, ties to even, in the lowest bits
u8, u16, u32, u64, i32, i64, f32, uintp = (
    np.uint8, np.uint16, np.uint32, np.uint64, np.int32, np.int64, np.float32, np.uintp
)  # fmt: skip


def encode(x: np.ndarray, payload: np.ndarray, bits: int, group: int, order: int, key: int | None) -> None:
    _encode_pieces(x, x[:0], payload, bits, group, order, key)


def decode(payload: np.ndarray, y: np.ndarray, bits: int, group: int, order: int) -> None:
    decode_sum(payload[None], y, bits, group, order, 1.0)


def decode_sum(payloads: np.ndarray, y: np.ndarray, bits: int, group: int, order: int, scale: float) -> None:
    size = padded(y.size, group, order)
    rows = _rows(payloads)
    factor = np.float32(scale / max(order, 1))
    _in_pieces(size, group, lambda o, end: _decode_sum(*rows, y, size, o, end, bits, group, order, factor, False))


def decode_sum_encode(
    payloads: np.ndarray,
    out: np.ndarray,
    num: int,
    bits: int,
    group: int,
    out_bits: int,
    out_group: int,
    order: int,
    key: int | None,
) -> None:
    size, out_size = padded(num, group, order), padded(num, out_group, order)
    rows = _rows(payloads)
    noise = _noise_words(key)
    _in_pieces(
        max(size, out_size),
        max(group, out_group),
        lambda o, end: _sum_encode(*rows, out, size, out_size, o, end, bits, group, out_bits, out_group, *noise),
    )


def encode_difference(
    x: np.ndarray, reference: np.ndarray, payload: np.ndarray, bits: int, group: int, key: int | None
) -> None:
    _encode_pieces(x, reference, payload, bits, group, 0, key)


def decode_add(payload: np.ndarray, reference: np.ndarray, bits: int, group: int) -> None:
    size, one = padded(reference.size, group, 0), np.float32(1)
    rows = payload, 1, 0
    _in_pieces(size, group, lambda o, end: _decode_sum(*rows, reference, size, o, end, bits, group, 0, one, True))


def _encode_pieces(
    x: np.ndarray, reference: np.ndarray, payload: np.ndarray, bits: int, group: int, order: int, key: int | None
) -> None:
    size = padded(x.size, group, order)
    settings = bits, group, order, *_noise_words(key)
    _in_pieces(size, group, lambda o, end: _encode(x, reference, payload, size, o, end, *settings))


def _noise_words(key: int | None) -> tuple[bool, int, int]:
    return (False, 0, 0) if key is None else (True, key & 0xFFFFFFFF, key >> 32)


def _rows(payloads: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Return the bytes from the first row to the end of the last, the number of rows, and from one to the next."""
    (num_rows, num_bytes), stride = payloads.shape, payloads.strides[0]
    span = stride * (num_rows - 1) + num_bytes
    return np.lib.stride_tricks.as_strided(payloads, (span,), (1,)), num_rows, stride


def _in_pieces(size: int, group: int, work: Callable[[int, int], None]) -> None:
    """Call `work` on ranges of whole groups that cover `size` elements, in threads where there are many."""
    count = max(min(num_threads(), size // _THREADED), 1)
    piece = max(-(-size // (count * group)) * group, group)
    for_each(lambda k: work(k * piece, min((k + 1) * piece, size)), count)


@numba.njit(nogil=True, error_model="numpy")
def _hashed_noise(i, low, high):
    """Return the noise of an element, given the lower 32 bits of its index."""
    h = u32(i + low)
    h = u32(u32(h ^ u32(h >> u32(16))) * u32(0x7FEB352D))
    h = u32(u32(h ^ u32(h >> u32(15))) + high)
    h = u32(u32(h ^ u32(h >> u32(16))) * u32(0x846CA68B))
    h = u32(u32(h ^ u32(h >> u32(16))) >> u32(16))
    return (f32(i32(h)) + f32(0.5)) * f32(2.0**-16) - f32(0.5)


@numba.njit(nogil=True, error_model="numpy")
def _store_groups(z, z_bits, payload, codes, size, o, end, bits, group, noisy, low, high):
    """Quantise and pack elements `o` to `end` of `size`, whole groups, which stand at the start of `z`."""
    levels = f32((1 << (bits - 1)) - 1)
    scales = uintp(payload.ctypes.data)
    first_code = 4 * ((size + group - 1) // group)
    for start in range(o, end, group):
        n = min(group, end - start)
        v, w, c = z[start - o : start - o + n], z_bits[start - o : start - o + n], codes[:n]
        most = i32(0)
        for k in range(n):
            most = max(most, i32(w[k] & i32(0x7FFFFFFF)))
        largest = float32_of(most)
        place = first_code + start // 8 * bits
        out = payload[place : place + n // 8 * bits]
        if most >= i32(_INFINITY) or largest < _SMALLEST:
            store32(scales + uintp(start // group * 4), u64(_NAN if most >= i32(_INFINITY) else 0))
            for k in range(n):
                c[k] = u8(i32(levels))
        else:
            store32(scales + uintp(start // group * 4), u64(bits32(largest / levels)))
            inverse = levels / largest
            if noisy:
                word = u32(high + u32(u32(u64(start) >> u64(32)) * u32(0x9E3779B9)))
                begin = u32(u64(start) & u64(0xFFFFFFFF))
                for k in range(n):
                    t = v[k] * inverse
                    t = min(max(t, -levels), levels) + _hashed_noise(u32(begin + u32(k)), low, word)
                    c[k] = u8(bits32(t + _ROUND) + i32(levels))
            else:
                for k in range(n):
                    t = v[k] * inverse
                    c[k] = u8(bits32(min(max(t, -levels), levels) + _ROUND) + i32(levels))
        _pack(c, out, bits)


@numba.njit(nogil=True, error_model="numpy")
def _pack(c, out, bits):
    n = c.size
    if bits == 8:
        for k in range(n):
            out[k] = c[k]
        return
    place, done = 0, 0
    if bits & 4:
        m = n // 2
        a, b, y = c[:m], c[m:], out[:m]
        for k in range(m):
            y[k] = u8((a[k] & u8(15)) | u8(b[k] << u8(4)))
        place, done = m, 4
    if bits & 2:
        m = n // 4
        a, b, d, e, y = c[:m], c[m : 2 * m], c[2 * m : 3 * m], c[3 * m :], out[place : place + m]
        for k in range(m):
            y[k] = u8(
                ((a[k] >> u8(done)) & u8(3))
                | ((b[k] >> u8(done)) & u8(3)) << u8(2)
                | ((d[k] >> u8(done)) & u8(3)) << u8(4)
                | ((e[k] >> u8(done)) & u8(3)) << u8(6)
            )
        place, done = place + m, done + 2
    if bits & 1:
        m = n // 8
        y = out[place : place + m]
        for k in range(m):
            y[k] = u8(0)
        for part in range(8):
            a = c[part * m : (part + 1) * m]
            for k in range(m):
                y[k] = u8(y[k] | u8((a[k] >> u8(done)) & u8(1)) << u8(part))


@numba.njit(nogil=True, error_model="numpy")
def _unpack(packed, c, bits):
    n = c.size
    if bits == 8:
        for k in range(n):
            c[k] = packed[k]
        return
    place, done = 0, 0
    if bits & 4:
        m = n // 2
        a, b, y = c[:m], c[m:], packed[:m]
        for k in range(m):
            a[k] = u8(y[k] & u8(15))
            b[k] = u8(y[k] >> u8(4))
        place, done = m, 4
    elif bits > 0:
        for k in range(n):
            c[k] = u8(0)
    if bits & 2:
        m = n // 4
        y = packed[place : place + m]
        for part in range(4):
            a = c[part * m : (part + 1) * m]
            for k in range(m):
                a[k] = u8(a[k] | u8((y[k] >> u8(2 * part)) & u8(3)) << u8(done))
        place, done = place + m, done + 2
    if bits & 1:
        m = n // 8
        y = packed[place : place + m]
        for part in range(8):
            a = c[part * m : (part + 1) * m]
            for k in range(m):
                a[k] = u8(a[k] | u8((y[k] >> u8(part)) & u8(1)) << u8(done))


@numba.njit(nogil=True, error_model="numpy")
def _load_groups(rows, num_rows, stride, z, codes, size, o, end, bits, group):
    """Sum elements `o` to `end` of `size`, whole groups, over all rows, into the start of `z`."""
    levels = i32((1 << (bits - 1)) - 1)
    first_code = 4 * ((size + group - 1) // group)
    address = uintp(rows.ctypes.data)
    for start in range(o, end, group):
        n = min(group, end - start)
        v, c = z[start - o : start - o + n], codes[:n]
        for r in range(num_rows):
            scale = float32_of(i32(load32(address + uintp(r * stride + start // group * 4))))
            place = r * stride + first_code + start // 8 * bits
            _unpack(rows[place : place + n // 8 * bits], c, bits)
            if r == 0:
                for k in range(n):
                    v[k] = f32(i32(i32(c[k]) - levels)) * scale
            else:
                for k in range(n):
                    v[k] += f32(i32(i32(c[k]) - levels)) * scale


def _read(scalar):
    return types.Array(scalar, 1, "C", readonly=True)


_ROWS = (_read(types.uint8), types.int64, types.int64)
_RANGE = (types.int64, types.int64, types.int64)
_NOISE = (types.boolean, types.uint32, types.uint32)
_INT2, _INT3 = (types.int64,) * 2, (types.int64,) * 3


@kernel(
    *(
        types.void(_read(scalar), _read(other), types.uint8[::1], *_RANGE, *_INT3, *_NOISE)
        for scalar in _ELEMENTS
        for other in _ELEMENTS
    )
)
def _encode(x, reference, payload, size, begin, stop, bits, group, order, noisy, low, high):
    """Encode elements, or, where `reference` is not empty, their differences from those of it."""
    block = max(group, _BLOCK)
    z, codes = np.empty(block, f32), np.empty(group, u8)
    z_bits = z.view(i32)
    for o in range(begin, stop, block):
        end = min(o + block, stop)
        source = x[o : min(end, x.size)]
        v = z[: source.size]
        for k in range(v.size):
            v[k] = widened(source[k])
        if reference.size:
            other = reference[o : min(end, x.size)]
            for k in range(v.size):
                v[k] -= widened(other[k])
        v = z[source.size : end - o]
        for k in range(v.size):
            v[k] = f32(0)
        if order:
            _transform_at(uintp(z.ctypes.data), end - o, order)
        _store_groups(z, z_bits, payload, codes, size, o, end, bits, group, noisy, low, high)


@kernel(*(types.void(*_ROWS, scalar[::1], *_RANGE, *_INT3, types.float32, types.boolean) for scalar in _ELEMENTS))
def _decode_sum(rows, num_rows, stride, y, size, begin, stop, bits, group, order, factor, added):
    """Decode the sum of rows into `y`, or add it there."""
    block = max(group, _BLOCK)
    z, codes = np.empty(block, f32), np.empty(group, u8)
    for o in range(begin, stop, block):
        end = min(o + block, stop)
        _load_groups(rows, num_rows, stride, z, codes, size, o, end, bits, group)
        if order:
            _transform_at(uintp(z.ctypes.data), end - o, order)
        target = y[o : min(end, y.size)]
        v = z[: target.size]
        if added:
            for k in range(v.size):
                target[k] = rounded_like(target[k], widened(target[k]) + v[k])
        else:
            for k in range(v.size):
                target[k] = rounded_like(target[k], v[k] * factor)


@kernel(types.void(*_ROWS, types.uint8[::1], types.int64, *_RANGE, *_INT2, *_INT2, *_NOISE))
def _sum_encode(
    rows, num_rows, stride, out, size, out_size, begin, stop, bits, group, out_bits, out_group, noisy, low, high
):
    block = max(group, out_group, _BLOCK)
    z, codes = np.empty(block, f32), np.empty(max(group, out_group), u8)
    z_bits = z.view(i32)
    for o in range(begin, stop, block):
        end, out_end = min(o + block, stop, size), min(o + block, stop, out_size)
        _load_groups(rows, num_rows, stride, z, codes, size, o, end, bits, group)
        v = z[max(end - o, 0) : max(out_end - o, 0)]
        for k in range(v.size):
            v[k] = f32(0)
        _store_groups(z, z_bits, out, codes, out_size, o, out_end, out_bits, out_group, noisy, low, high)
