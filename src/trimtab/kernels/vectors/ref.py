"""Looked-up vectors as small integers, the specification: a matrix of n rows (vectors) and d columns.

`quantise` makes an element x an integer q and checks that ``q * step`` is within the limit; where it is not (NaN and
infinities among them) q is 0, and the place is listed: the element is kept as it is. `distinct_rows` numbers the rows
that differ. These numbers become *references*: 0 is a row not seen before, which takes the next number; 1 + i is row i
again. Or they become the *steps* of vector-LZ: a step is a match, two bytes for its length (1 to 255 rows) and its
offset (1 to 255 rows back), or one literal row.

Codes ``q - low`` are packed to 0, 1, 2, 4 or 8 bits, 8 / bits of them in a byte, the first lowest, and zeros fill the
last byte. With 16 bits there are two planes: the low bytes of all codes, then the high bytes.
"""

from __future__ import annotations

import numpy as np

MAX_CODE = 32767
MAX_MATCH = 255
BITS = (0, 1, 2, 4, 8, 16)
MAGIC = np.float32(3 << 22)  # added to a float below 2^22, it leaves the nearest integer (ties to even) in the low bits
MAGIC_BITS = MAGIC.view(np.int32)


def quantise(
    x: np.ndarray, limit: np.float32, step: np.float32, inverse: np.float32, codes: np.ndarray, places: np.ndarray
) -> tuple[int, int, int]:
    """Fill `codes` (int16[n]) with the multiples of `step` nearest to `x` (float32[n]), and list where they fail.

    An element fails unless ``|x - q * step| <= limit`` in float32 and |q| <= `MAX_CODE`; `inverse` is about 1 / step.
    Returns the lowest and the highest code, and how many elements fail; of their `places` (int64, ascending) there are
    as many as there is room for.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        q = (x * inverse + MAGIC).view(np.int32) - MAGIC_BITS
        kept = (np.abs(x - q.astype(np.float32) * step) <= limit) & (q >= -MAX_CODE) & (q <= MAX_CODE)
    codes[:] = np.where(kept, q, 0)
    failed = np.flatnonzero(~kept)
    places[: failed.size] = failed[: places.size]
    return (int(codes.min()), int(codes.max()), failed.size) if codes.size else (0, 0, 0)


def distinct_rows(rows: np.ndarray, numbers: np.ndarray, firsts: np.ndarray) -> int:
    """Number the different rows of `rows` (uint8[n, width]) in the order in which they come; return how many there are.

    `numbers` (int32[n]) gets the number of each row; `firsts` (int32, room for n) where each number comes first.
    """
    found: dict[bytes, int] = {}
    for r, row in enumerate(rows):
        key = row.tobytes()
        if key not in found:
            firsts[len(found)] = r
            found[key] = len(found)
        numbers[r] = found[key]
    return len(found)


def refer(numbers: np.ndarray, references: np.ndarray) -> None:
    """Fill `references` (int32[n]) from the numbers of rows: each the signed integer that folds to it.

    A signed d folds to 2 d where it is not negative, else to -2 d - 1, as `trimtab.kernels.tokens` has it.
    """
    seen = 0
    for r, number in enumerate(numbers):
        z = 0 if number == seen else 1 + int(number)
        seen += number == seen
        references[r] = (z >> 1) ^ -(z & 1)


def resolve(references: np.ndarray, num_distinct: int, numbers: np.ndarray) -> int:
    """Fill `numbers` (int32[n]) from `references`; return 0, or -1 if there are not `num_distinct` different rows."""
    seen = 0
    for r, d in enumerate(references.tolist()):
        z = ((d << 1) ^ (d >> 31)) & 0xFFFFFFFF
        if z > seen:
            return -1
        numbers[r] = seen if z == 0 else z - 1
        seen += z == 0
    return 0 if seen == num_distinct else -1


def find_matches(
    numbers: np.ndarray, flags: np.ndarray, pairs: np.ndarray, literals: np.ndarray
) -> tuple[int, int, int]:
    """Cut rows, of which equal ones have equal `numbers` (int32[n], below n), into matches and literal rows.

    A match begins where the same row stands at most `MAX_MATCH` rows before, the nearest one, and is as long as it can
    be. `flags` (uint8, room for n) says of each step whether it is a match, `pairs` (uint8, room for 2 n) has its
    length and offset, `literals` (int32, room for n) the rows that are none. Returns how many steps, matches and
    literals there are.
    """
    last: dict[int, int] = {}
    r = num_steps = num_matches = num_literals = 0
    while r < numbers.size:
        offset = r - last.get(int(numbers[r]), -MAX_MATCH - 1)
        length = 1
        if offset <= MAX_MATCH:
            while length < min(MAX_MATCH, numbers.size - r) and numbers[r + length] == numbers[r + length - offset]:
                length += 1
            pairs[2 * num_matches : 2 * num_matches + 2] = length, offset
            num_matches += 1
        else:
            literals[num_literals] = r
            num_literals += 1
        flags[num_steps] = offset <= MAX_MATCH
        num_steps += 1
        for k in range(r, r + length):
            last[int(numbers[k])] = k
        r += length
    return num_steps, num_matches, num_literals


def follow_matches(flags: np.ndarray, pairs: np.ndarray, num_literals: int, numbers: np.ndarray) -> int:
    """Fill `numbers` (int32[n]) with the literal that each row is; return 0, or -1 if the steps do not fit.

    `flags` (uint8) may go on after the last step, by fewer than 8 zeros; `pairs` (uint8) end with it.
    """
    r = step = at = literal = 0
    while r < numbers.size:
        if step == flags.size:
            return -1
        if flags[step]:
            if at + 2 > pairs.size:
                return -1
            length, offset = int(pairs[at]), int(pairs[at + 1])
            if not (1 <= offset <= r and 1 <= length <= numbers.size - r):
                return -1
            for k in range(r, r + length):
                numbers[k] = numbers[k - offset]
            at += 2
            r += length
        else:
            numbers[r] = literal
            literal += 1
            r += 1
        step += 1
    ended = flags.size - step < 8 and not flags[step:].any()
    return 0 if ended and at == pairs.size and literal == num_literals else -1


def packed_size(num: int, bits: int) -> int:
    """Return how many bytes `num` codes take."""
    return (num * bits + 7) // 8


def pack(codes: np.ndarray, rows: np.ndarray, low: int, bits: int, packed: np.ndarray) -> None:
    """Fill `packed` (uint8) with the codes less `low`, of which none needs more than `bits`, of some rows.

    `codes` is int16[n, d], `rows` (int32) the rows that are taken, in that order.
    """
    values = (codes[rows].astype(np.int64) - low).reshape(-1)
    if bits == 16:
        packed[:] = np.concatenate([values & 255, values >> 8])
    elif bits:
        digits = (values[:, None] >> np.arange(bits)) & 1
        packed[:] = np.packbits(digits.astype(np.uint8).reshape(-1), bitorder="little")


def unpack(packed: np.ndarray, low: int, bits: int, step: np.float32, y: np.ndarray) -> None:
    """Fill `y` (float32[n], contiguous) with ``(code + low) * step`` from `packed` (uint8, of `packed_size`)."""
    if bits == 16:
        values = packed[: y.size].astype(np.int32) | packed[y.size :].astype(np.int32) << 8
    elif bits:
        digits = np.unpackbits(packed, bitorder="little")[: y.size * bits].reshape(-1, bits)
        values = (digits.astype(np.int32) << np.arange(bits, dtype=np.int32)).sum(axis=1, dtype=np.int32)
    else:
        values = np.zeros(y.size, np.int32)
    y[:] = (values + np.int32(low)).astype(np.float32) * step
