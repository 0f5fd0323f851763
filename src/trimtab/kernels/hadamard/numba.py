"""Walsh-Hadamard transforms of short blocks of float32, fast: see ref.py.

LLVM does not find the butterflies within a vector by itself, so a block is written down in vectors of 16 lanes, which
it cuts to what the machine has.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from trimtab.kernels.hadamard.ref import ORDERS
from trimtab.kernels.jit import kernel

__all__ = ["transform"]

_LANES = 16
_VECTOR, _INDICES = ir.VectorType(ir.FloatType(), _LANES), ir.VectorType(ir.IntType(32), _LANES)
uintp = np.uintp


def _block(order):
    """Return an intrinsic that transforms `order` elements at an address."""

    @intrinsic
    def transform_block(typingctx, address):
        def codegen(context, builder, signature, args):
            places = [
                builder.inttoptr(builder.add(args[0], args[0].type(4 * k)), _VECTOR.as_pointer())
                for k in range(0, order, _LANES)
            ]
            values = [builder.load(place, align=4) for place in places]
            distance = 1
            while distance < _LANES:
                values = [_within(builder, value, distance) for value in values]
                distance *= 2
            while distance < order:
                step = distance // _LANES
                for k in range(len(values)):
                    if not k & step:
                        a, b = values[k], values[k + step]
                        values[k], values[k + step] = builder.fadd(a, b), builder.fsub(a, b)
                distance *= 2
            for value, place in zip(values, places, strict=True):
                builder.store(value, place, align=4)
            return context.get_dummy_value()

        return types.void(types.uintp), codegen

    return transform_block


def _within(builder, value, distance):
    """Return the sums and differences of pairs at `distance` within a vector."""

    def shuffle(a, b, lanes):
        return builder.shuffle_vector(a, b, ir.Constant(_INDICES, lanes))

    other = shuffle(value, value, [lane ^ distance for lane in range(_LANES)])
    sums, differences = builder.fadd(value, other), builder.fsub(other, value)
    return shuffle(sums, differences, [lane + _LANES if lane & distance else lane for lane in range(_LANES)])


_block32, _block64, _block128, _block256, _block512 = (_block(order) for order in ORDERS)


@kernel(types.void(types.uintp, types.int64, types.int64))
def _transform_at(address, size, order):
    """Transform `size` float32 at an address, a multiple of `order`, in place."""
    end, step = address + uintp(4 * size), uintp(4 * order)
    if order == 32:
        while address < end:
            _block32(address)
            address += step
    elif order == 64:
        while address < end:
            _block64(address)
            address += step
    elif order == 128:
        while address < end:
            _block128(address)
            address += step
    elif order == 256:
        while address < end:
            _block256(address)
            address += step
    elif order == 512:
        while address < end:
            _block512(address)
            address += step


@kernel(types.void(types.float32[::1], types.int64))
def transform(z, order):
    _transform_at(z.ctypes.data, z.size, order)
