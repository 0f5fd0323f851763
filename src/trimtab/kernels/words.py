"""Machine words inside kernels: unaligned loads and stores (little-endian everywhere), shifts, bit counts.

Kernels that call these are cached, and the cache does not notice edits here: a new meaning needs a new name.
"""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WORD, _HALF_WORD, _QUARTER_WORD, _BYTE = ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.IntType(8)
_FLOAT = ir.FloatType()
_BYTES = ir.VectorType(_BYTE, 64)
_LANES = ir.VectorType(ir.IntType(1), 64)


@intrinsic
def load64(typingctx, address):
    """Read 8 bytes at any address."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _WORD.as_pointer())
        return _little_endian(builder, builder.load(pointer, align=1))

    return types.uint64(types.uintp), codegen


@intrinsic
def load16(typingctx, address):
    """Read 2 bytes at any address."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _QUARTER_WORD.as_pointer())
        return builder.zext(_little_endian(builder, builder.load(pointer, align=1)), _WORD)

    return types.uint64(types.uintp), codegen


@intrinsic
def load32(typingctx, address):
    """Read 4 bytes at any address."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _HALF_WORD.as_pointer())
        return builder.zext(_little_endian(builder, builder.load(pointer, align=1)), _WORD)

    return types.uint64(types.uintp), codegen


@intrinsic
def store64(typingctx, address, value):
    """Write 8 bytes at any address."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _WORD.as_pointer())
        builder.store(_little_endian(builder, args[1]), pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uint64), codegen


@intrinsic
def store32(typingctx, address, value):
    """Write the lower 4 bytes of a word at any address."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _HALF_WORD.as_pointer())
        builder.store(_little_endian(builder, builder.trunc(args[1], _HALF_WORD)), pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uint64), codegen


@intrinsic
def equal_bytes(typingctx, address, value):
    """Compare 64 bytes at any address with a byte: bit i of the result says whether byte i equals it."""
    return types.uint64(types.uintp, types.uint8), _compared_bytes("==")


@intrinsic
def greater_bytes(typingctx, address, value):
    """Compare 64 bytes at any address with a byte: bit i of the result says whether byte i is greater."""
    return types.uint64(types.uintp, types.uint8), _compared_bytes(">")


@intrinsic
def marked_bytes(typingctx, address, value):
    """Look at 64 bytes at any address: bit i of the result says whether byte i has a bit in common with a byte."""

    def codegen(context, builder, signature, args):
        found = builder.and_(_load_bytes(builder, args[0]), _all_lanes(builder, args[1]))
        return bit_word(builder, builder.icmp_unsigned("!=", found, ir.Constant(_BYTES, [0] * 64)))

    return types.uint64(types.uintp, types.uint8), codegen


@intrinsic
def raise_bytes(typingctx, address, word, value):
    """Add a byte to those of the 64 bytes at an address whose bit in a word is set."""

    def codegen(context, builder, signature, args):
        chosen = word_bits(builder, args[1])
        added = builder.select(chosen, _all_lanes(builder, args[2]), ir.Constant(_BYTES, [0] * 64))
        pointer = builder.inttoptr(args[0], _BYTES.as_pointer())
        builder.store(builder.add(builder.load(pointer, align=1), added), pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uint64, types.uint8), codegen


@intrinsic
def extract_bits(typingctx, word, mask):
    """Move the bits of a word that a mask names to the low end, in their order; the rest is zero."""

    def codegen(context, builder, signature, args):
        if _has_bit_moves(context):
            return _bit_move(builder, "pext", *args)
        return _extracted(builder, *args)

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def deposit_bits(typingctx, word, mask):
    """Move the low bits of a word to the places that a mask names, in their order; the rest is zero."""

    def codegen(context, builder, signature, args):
        if _has_bit_moves(context):
            return _bit_move(builder, "pdep", *args)
        return _deposited(builder, *args)

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def extract_bits_plainly(typingctx, word, mask):
    """Do what `extract_bits` does where the processor has no instruction for it."""
    codegen = lambda context, builder, signature, args: _extracted(builder, *args)  # noqa: E731
    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def deposit_bits_plainly(typingctx, word, mask):
    """Do what `deposit_bits` does where the processor has no instruction for it."""
    codegen = lambda context, builder, signature, args: _deposited(builder, *args)  # noqa: E731
    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def shift_right32(typingctx, value, count):
    """Shift an int32 right by 0 to 31 places, keeping its sign; `>>` would widen to 64 bits and halve the vectors."""

    def codegen(context, builder, signature, args):
        return builder.ashr(args[0], args[1])

    return types.int32(types.int32, types.int32), codegen


@intrinsic
def bits32(typingctx, value):
    """Return the bits of a float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _HALF_WORD)

    return types.int32(types.float32), codegen


@intrinsic
def float32_of(typingctx, bits):
    """Return the float32 that has these bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.int32), codegen


@intrinsic
def widened(typingctx, element):
    """Return a float32, or the bfloat16 whose bits are a uint16, as a float32."""
    if element == types.float32:
        return types.float32(types.float32), lambda context, builder, signature, args: args[0]

    def codegen(context, builder, signature, args):
        bits = builder.shl(builder.zext(args[0], _HALF_WORD), _HALF_WORD(16))
        return builder.bitcast(bits, _FLOAT)

    return types.float32(types.uint16), codegen


@intrinsic
def rounded_like(typingctx, element, value):
    """Return a float32 as an element of the type of `element`, which is float32 or uint16.

    The latter gets the bits of the nearest bfloat16, ties to even; NaN become 0x7fc0.
    """
    if element == types.float32:
        return types.float32(types.float32, types.float32), lambda context, builder, signature, args: args[1]

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[1], _HALF_WORD)
        odd = builder.and_(builder.lshr(bits, _HALF_WORD(16)), _HALF_WORD(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, _HALF_WORD(0x7FFF))), _HALF_WORD(16))
        is_nan = builder.fcmp_unordered("uno", args[1], args[1])
        return builder.trunc(builder.select(is_nan, _HALF_WORD(0x7FC0), rounded), _QUARTER_WORD)

    return types.uint16(types.uint16, types.float32), codegen


@intrinsic
def trailing_zeros(typingctx, word):
    """Number of zero bits below the lowest set bit of a word; 64 for zero."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), codegen


@intrinsic
def leading_zeros(typingctx, word):
    """Number of zero bits above the highest set bit of a word; 64 for zero."""

    def codegen(context, builder, signature, args):
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), codegen


@intrinsic
def count_ones(typingctx, word):
    """Number of set bits of a word."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address, which need not be one that can be read."""

    def codegen(context, builder, signature, args):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(args[0], byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(types.uintp), codegen


def _little_endian(builder, value):
    if sys.byteorder == "little":
        return value
    swap = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(value.type, [value.type]), f"llvm.bswap.i{value.type.width}"
    )
    return builder.call(swap, [value])


def _compared_bytes(relation):
    def codegen(context, builder, signature, args):
        found = builder.icmp_unsigned(relation, _load_bytes(builder, args[0]), _all_lanes(builder, args[1]))
        return bit_word(builder, found)

    return codegen


def _load_bytes(builder, address):
    return builder.load(builder.inttoptr(address, _BYTES.as_pointer()), align=1)


def _all_lanes(builder, value):
    """Return 64 times a byte."""
    place = builder.insert_element(ir.Constant(_BYTES, ir.Undefined), value, _HALF_WORD(0))
    return builder.shuffle_vector(place, place, ir.Constant(ir.VectorType(_HALF_WORD, 64), [0] * 64))


def bit_word(builder, lanes):
    """Return the word of 64 truth values, of which lane 0 is the lowest bit; for code that emits vectors itself."""
    return _lowest_first(builder, builder.bitcast(lanes, _WORD))


def word_bits(builder, word):
    """Return the 64 truth values of a word: the inverse of `bit_word`."""
    return builder.bitcast(_lowest_first(builder, word), _LANES)


def _lowest_first(builder, word):
    """Lane 0 is the lowest bit of a word where bytes are little-endian, and the highest elsewhere."""
    if sys.byteorder == "little":
        return word
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_WORD, [_WORD]), "llvm.bitreverse.i64")
    return builder.call(function, [word])


def _has_bit_moves(context):
    """Whether code is compiled for a processor that moves bits by a mask in one fast instruction."""
    _, name, features = context.codegen().magic_tuple()
    return "+bmi2" in features and name not in ("znver1", "znver2")  # these two take hundreds of cycles


def _bit_move(builder, name, word, mask):
    kind = ir.FunctionType(_WORD, [_WORD, _WORD])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.bmi.{name}.64"), [word, mask])


def _moves(builder, mask):
    """Yield, for 1, 2, 4 ... 32 places, which bits move down by so many on their way to the low end.

    A bit moves by the number of mask bits below it that are clear, binary digit by digit, lowest first; the parity of
    such counts is a running exclusive-or.
    """
    clear = builder.shl(builder.not_(mask), _WORD(1))
    for step in range(6):
        parity = clear
        for places in (1, 2, 4, 8, 16, 32):
            parity = builder.xor(parity, builder.shl(parity, _WORD(places)))
        moving = builder.and_(parity, mask)
        yield 1 << step, moving
        mask = builder.or_(builder.xor(mask, moving), builder.lshr(moving, _WORD(1 << step)))
        clear = builder.and_(clear, builder.not_(parity))


def _extracted(builder, word, mask):
    word = builder.and_(word, mask)
    for places, moving in _moves(builder, mask):
        moved = builder.and_(word, moving)
        word = builder.or_(builder.xor(word, moved), builder.lshr(moved, _WORD(places)))
    return word


def _deposited(builder, word, mask):
    for places, moving in reversed(list(_moves(builder, mask))):
        stays = builder.and_(word, builder.not_(moving))
        word = builder.or_(stays, builder.and_(builder.shl(word, _WORD(places)), moving))
    return builder.and_(word, mask)
