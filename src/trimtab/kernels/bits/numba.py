"""One bit an element, fast: see ref.py for the format. 64 elements are compared at a time."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from trimtab.kernels.bits.ref import mask_bytes
from trimtab.kernels.jit import kernel
from trimtab.kernels.words import bit_word, load64, store64, word_bits

__all__ = ["mask", "mask_bytes", "unmask"]

_LANES = 64
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_WORDS = (types.int32, types.int16)
u8, u64, uintp = np.uint8, np.uint64, np.uintp


@intrinsic
def _not_below(typingctx, address, infinity):
    """Return the word that tells which of 64 elements are not <= 0; they are as wide as `infinity`."""

    def codegen(context, builder, signature, args):
        kind = ir.VectorType(ir.IntType(infinity.bitwidth), _LANES)
        words = builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)
        magnitudes = builder.and_(words, ir.Constant(kind, [(1 << (infinity.bitwidth - 1)) - 1] * _LANES))
        positive = builder.icmp_signed(">", words, ir.Constant(kind, [0] * _LANES))
        is_nan = builder.icmp_signed(">", magnitudes, _all_lanes(builder, kind, args[1]))
        return bit_word(builder, builder.or_(positive, is_nan))

    return types.uint64(types.uintp, infinity), codegen


@intrinsic
def _store_chosen(typingctx, word, one, address):
    """Write 64 elements: `one` where the word has a bit, else 0."""

    def codegen(context, builder, signature, args):
        kind = ir.VectorType(ir.IntType(one.bitwidth), _LANES)
        chosen = word_bits(builder, args[0])
        words = builder.select(chosen, _all_lanes(builder, kind, args[1]), ir.Constant(kind, [0] * _LANES))
        builder.store(words, builder.inttoptr(args[2], kind.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, one, types.uintp), codegen


def _all_lanes(builder, kind, value):
    place = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(place, place, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES))


@kernel(*(types.void(types.Array(word, 1, "C", readonly=True), word, types.uint8[::1]) for word in _WORDS))
def mask(words, infinity, out):
    at, out_at = uintp(words.ctypes.data), uintp(out.ctypes.data)
    whole = words.size // _LANES
    for k in range(whole):
        store64(out_at + uintp(8 * k), _not_below(at + uintp(k * _LANES * words.itemsize), infinity))
    rest = np.zeros(_LANES, words.dtype)
    for i in range(words.size - whole * _LANES):
        rest[i] = words[whole * _LANES + i]
    last = _not_below(uintp(rest.ctypes.data), infinity)
    for i in range(8 * whole, out.size):
        out[i] = u8(last & u64(255))
        last >>= u64(8)


@kernel(*(types.void(_BYTES, word, word[::1]) for word in _WORDS))
def unmask(mask, one, words):
    at, words_at = uintp(mask.ctypes.data), uintp(words.ctypes.data)
    whole = words.size // _LANES
    for k in range(whole):
        _store_chosen(load64(at + uintp(8 * k)), one, words_at + uintp(k * _LANES * words.itemsize))
    for i in range(whole * _LANES, words.size):
        words[i] = one if mask[i >> 3] >> (i & 7) & 1 else 0
