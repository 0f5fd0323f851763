"""Integers of which most are zero, bit by bit in adaptive contexts, the specification.

Each integer is a sequence of binary *events*: whether it is zero, and, where signs and magnitudes are coded, its sign,
the number of its magnitude's bits, and these bits. Every event has a context with a probability of its own that
learns as it goes; a 64-bit range asymmetric numeral system (Duda, arXiv 1311.2540, 2013) codes the event with it.

The integers stand in rows of ``width``, the last of which may be shorter. Events of the integer at place i, in row Y
and column X, of which the decoder knows all before:

- nonzero, in context 45 g + 9 s + d. With z zeros since the last nonzero (or the start), g is 0 if z is 0, 1 below 6, 2
  below 48, 3 below 192, else 4. With ``lag`` > 0, s counts nonzeros near the places one and two lags before:
  2 [i - lag] + [i - lag + 1] + [i - lag - 1] + [i - 2 lag], at most 4; places before the start are zero. Without a lag,
  s is 0. How dense the row and the column have been so far, beside the whole block, is d: with R and C the nonzeros
  before in them and ``initial`` the share I of nonzeros, d is 4 plus
  L(2^16 (C + 4)) - L(I Y + 2^18) + L(2^16 (R + 4)) - L(I X + 2^18) + 64 >> 7, between -4 and 4: twice the logarithm of
  base 2. With 2^e the largest power of two that is not above n, L(n) is 256 (e - 1) + (2^8 n >> e), which is the
  logarithm in units of 1/256, between powers of two a straight line.
- negative, in context 225 + 15 a + 5 b + v, where a and b are 0, 1 or 2 as the last nonzero, and the one before it, was
  negative, does not exist, or was positive; v is 0 if among the nonzeros before in the column the negative ones are
  three more than the positive ones, or more than three; 1 if one or two more; 2 if as many; 3 if one or two fewer, else
  4.
- for k = 0, 1, ... up to 28, whether the magnitude m has more than k + 1 bits, in context 270 + 32 c + k, until it has
  not; c is the number of bits but one of the last nonzero's magnitude, at most 2 (0 if there is none).
- the bits of m below the highest, highest first. With n the number formed by the highest bit and those known, one in
  context 358 + 8 B + n while n < 8, B being the bits of m but one, 1 to 29; further ones have an even chance.

A context's probability p of an event, in units of 2^-28, and its count n begin with n = 0 and p = 2^27; in the contexts
below 225 with n = 8 and p = 2^12 times the block's ``initial`` times 2^((d - 4) / 2): ``initial`` times 64, 91, 128,
181, 256, 362, 512, 724 or 1024, as d says, >> 8, from 24 to 2^16 - 24. An event is coded with f = p >> 12; then
p += (t - p) r[n] >> 16, rounding down, and n += 1 up to 1023. Here t is 2^12 (2^16 - 24) if the event happened, 2^12 x
24 if not, so that no event becomes impossible, and r[n] = 2^16 // (n + 2).

A block::

    initial   uint16, the share of nonzeros in units of 2^-16, 24 to 2^16 - 24
    state     uint64, x, at least 2^32
    words     uint32

With u the low 16 bits of x, an event happens where u < f; then x becomes f (x >> 16) + u, else
(2^16 - f) (x >> 16) + u - f. If x is below 2^32 then, it becomes 2^32 x plus the next word. After the last event x is
2^32 and no word is left. Numbers are little-endian.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

MAX_BITS = 30
"""Magnitudes have at most so many bits."""
MAX_LAG = 1 << 18
NUM_CONTEXTS = 358 + 8 * MAX_BITS
MAX_COUNT = 1023
HEAD_SIZE = 10
LEAST = 24
"""The least chance of an event, or of none, in units of 2^-16."""
DENSITIES = (64, 91, 128, 181, 256, 362, 512, 724, 1024)
"""The nonzeros that contexts of each density expect at first, in units of a 256th of the average."""
PLACE_COUNT = 8
"""How many events the contexts of places are taken to have seen at first."""
_SIGNS, _SIZES, _BITS = 225, 270, 358
_PRIOR = 4  # nonzeros that rows and columns are taken to have at first
_LOW = 1 << 32
_EVEN = 1 << 15


def encode(q: np.ndarray, width: int, lag: int, signed: bool, out: np.ndarray) -> int:
    """Encode `q` (int32[n], magnitudes below 2^30) into `out` (uint8) and return the block's size, or -1 if too small.

    `width` is at least 1; `lag` is 0 or from 2 to `MAX_LAG`. Without `signed`, only where nonzeros stand is coded.
    """
    num = int(np.count_nonzero(q))
    initial = max(min((num * 65536 + q.size // 2) // max(q.size, 1), 65536 - LEAST), LEAST)
    model = _Model(initial, width, lag)
    events: list[tuple[int, int]] = []
    for value in q.tolist():
        events.append((model.learn(model.place(), value != 0), value != 0))
        if value and signed:
            _encode_value(value, model, events)
        model.pass_by(value)
    x, words = _LOW, []
    for f, event in reversed(events):
        share, start = (f, 0) if event else (65536 - f, f)
        if x >= share << 48:
            words.append(x % _LOW)
            x //= _LOW
        x = (x // share << 16) + x % share + start
    block = np.array([initial], "<u2").tobytes() + np.array([x], "<u8").tobytes()
    block += np.array(words[::-1], "<u4").tobytes()
    if len(block) > out.size:
        return -1
    out[: len(block)] = np.frombuffer(block, np.uint8)
    return len(block)


def decode(block: np.ndarray, width: int, lag: int, signed: bool, q: np.ndarray) -> int:
    """Fill `q` (int32[n]) from `block` (uint8, exactly one block); return 0, or -1 if it is corrupt.

    Without `signed`, nonzeros become 1. `q` may have been written to if the block is corrupt.
    """
    coder = _Decoder(block)
    if not coder.good:
        return -1
    model = _Model(coder.initial, width, lag)
    for i in range(q.size):
        value = int(coder.event(model, model.place()))
        if value and signed:
            value = _decode_value(coder, model)
        if not coder.good:
            return -1
        q[i] = value
        model.pass_by(value)
    return 0 if coder.x == _LOW and not coder.words else -1


class _Model:
    """The contexts, and what they are chosen by."""

    def __init__(self, initial: int, width: int, lag: int) -> None:
        densities = [max(min(initial * share >> 8, 65536 - LEAST), LEAST) << 12 for share in DENSITIES]
        self.p = densities * (_SIGNS // len(densities)) + [1 << 27] * (NUM_CONTEXTS - _SIGNS)
        self.n = [PLACE_COUNT] * _SIGNS + [0] * (NUM_CONTEXTS - _SIGNS)
        self.initial, self.width, self.lag = initial, width, lag
        self.nonzero: list[bool] = []
        self.run = 0
        self.row = 0  # nonzeros in the row
        self.columns: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])  # negative ones, positive ones
        self.signs = [1, 1]
        self.size = 0

    def chance(self, context: int) -> int:
        return self.p[context] >> 12

    def learn(self, context: int, event: bool) -> int:
        """Return the chance that the event had."""
        f, n = self.chance(context), self.n[context]
        target = (65536 - LEAST if event else LEAST) << 12
        self.p[context] += (target - self.p[context]) * (65536 // (n + 2)) >> 16
        self.n[context] = min(n + 1, MAX_COUNT)
        return f

    def place(self) -> int:
        """Return the context of whether the next integer is nonzero."""
        i, lag = len(self.nonzero), self.lag
        y, x = divmod(i, self.width)
        near = [i - lag, i - lag, i - lag + 1, i - lag - 1, i - 2 * lag] if lag else []
        s = min(sum(self.nonzero[at] for at in near if at >= 0), 4)
        column = _log((sum(self.columns[x]) + _PRIOR) << 16) - _log(self.initial * y + (_PRIOR << 16))
        row = _log((self.row + _PRIOR) << 16) - _log(self.initial * x + (_PRIOR << 16))
        d = max(min(column + row + 64 >> 7, 4), -4) + 4
        return 45 * sum(self.run >= start for start in (1, 6, 48, 192)) + 9 * s + d

    def sign(self) -> int:
        """Return the context of whether the next integer, which is nonzero, is negative."""
        negative, positive = self.columns[len(self.nonzero) % self.width]
        v = sum(positive - negative >= start for start in (-2, 0, 1, 3))
        return _SIGNS + 15 * self.signs[0] + 5 * self.signs[1] + v

    def pass_by(self, value: int) -> None:
        """Take note of an integer."""
        self.run = 0 if value else self.run + 1
        if value:
            self.row += 1
            self.columns[len(self.nonzero) % self.width][value > 0] += 1
            self.signs = [0 if value < 0 else 2, self.signs[0]]
            self.size = min(abs(value).bit_length() - 1, 2)
        self.nonzero.append(value != 0)
        if len(self.nonzero) % self.width == 0:
            self.row = 0


class _Decoder:
    """The state of the numeral system, and the words that are left."""

    def __init__(self, block: np.ndarray) -> None:
        self.good = block.size >= HEAD_SIZE and (block.size - HEAD_SIZE) % 4 == 0
        if self.good:
            self.initial = int(block[:2].copy().view("<u2")[0])
            self.x = int(block[2:HEAD_SIZE].copy().view("<u8")[0])
            self.words = block[HEAD_SIZE:].copy().view("<u4").tolist()[::-1]
            self.good = self.x >= _LOW and LEAST <= self.initial <= 65536 - LEAST

    def event(self, model: _Model, context: int) -> bool:
        event = self.bit(model.chance(context))
        model.learn(context, event)
        return event

    def bit(self, f: int) -> bool:
        u = self.x & 65535
        self.x = f * (self.x >> 16) + u if u < f else (65536 - f) * (self.x >> 16) + u - f
        if self.x < _LOW:
            if not self.words:
                self.good = False
                self.x = _LOW
            else:
                self.x = self.x << 32 | self.words.pop()
        return u < f


def _log(n: int) -> int:
    """Return the logarithm of base 2, in units of 1/256, between powers of two a straight line."""
    e = n.bit_length() - 1
    return 256 * (e - 1) + (n << 8 >> e)


def _encode_value(value: int, model: _Model, events: list[tuple[int, int]]) -> None:
    def put(context: int, event: bool) -> None:
        events.append((model.learn(context, event), event))

    put(model.sign(), value < 0)
    bits = abs(value).bit_length() - 1
    for k in range(min(bits + 1, MAX_BITS - 1)):
        put(_SIZES + 32 * model.size + k, bits > k)
    known = 1
    for place in range(bits - 1, -1, -1):
        bit = abs(value) >> place & 1
        if known < 8:
            put(_BITS + 8 * bits + known, bool(bit))
        else:
            events.append((_EVEN, bit))
        known = 2 * known + bit


def _decode_value(coder: _Decoder, model: _Model) -> int:
    negative = coder.event(model, model.sign())
    bits = 0
    while bits < MAX_BITS - 1 and coder.event(model, _SIZES + 32 * model.size + bits):
        bits += 1
    known = 1
    for _ in range(bits):
        bit = coder.event(model, _BITS + 8 * bits + known) if known < 8 else coder.bit(_EVEN)
        known = 2 * known + bit
    return -known if negative else known
