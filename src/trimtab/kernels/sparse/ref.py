"""Integers of which most are zero, bit by bit in adaptive contexts, the specification.

Each integer is a sequence of binary *events*: whether it is zero, and, where signs and magnitudes are coded, its sign,
the number of its magnitude's bits, and these bits. Every event has a context with a probability of its own that
learns as it goes; a 64-bit range asymmetric numeral system (Duda, arXiv 1311.2540, 2013) codes the event with it.

Events of the integer at place i, of which the decoder knows all before:

- nonzero, in context 5 g + s. With z zeros since the last nonzero (or the start), g is z below 6, 6 below 12, 7 below
  24, 8 below 48, 9 below 96, 10 below 192, else 11. With ``lag`` > 0, s counts nonzeros near the places one and two
  lags before: 2 [i - lag] + [i - lag + 1] + [i - lag - 1] + [i - 2 lag], at most 4; places before the start are zero.
  Without a lag, s is 0.
- negative, in context 60 + 3 a + b, where a and b are 0, 1 or 2 as the last nonzero, and the one before it, was
  negative, does not exist, or was positive.
- for k = 0, 1, ... up to 28, whether the magnitude m has more than k + 1 bits, in context 69 + 32 c + k, until it has
  not; c is the number of bits but one of the last nonzero's magnitude, at most 2 (0 if there is none).
- the bits of m below the highest, highest first. With n the number formed by the highest bit and those known, one in
  context 157 + 8 B + n while n < 8, B being the bits of m but one, 1 to 29; further ones have an even chance.

A context's probability p of an event, in units of 2^-28, and its count n begin with n = 0 and p = 2^27, in the contexts
below 60 with p = 2^12 times the block's ``initial``. An event is coded with f = p >> 12; then p += (t - p) r[n] >> 16,
rounding down, and n += 1 up to 1023. Here t is 2^12 (2^16 - 24) if the event happened, 2^12 x 24 if not, so that no
event becomes impossible, and r[n] = 2^16 // (n + 2).

A block::

    initial   uint16, 24 to 2^16 - 24
    state     uint64, x, at least 2^32
    words     uint32

With u the low 16 bits of x, an event happens where u < f; then x becomes f (x >> 16) + u, else
(2^16 - f) (x >> 16) + u - f. If x is below 2^32 then, it becomes 2^32 x plus the next word. After the last event x is
2^32 and no word is left. Numbers are little-endian.
"""

from __future__ import annotations

import numpy as np

MAX_BITS = 30
"""Magnitudes have at most so many bits."""
MAX_LAG = 1 << 18
NUM_CONTEXTS = 157 + 8 * MAX_BITS
MAX_COUNT = 1023
HEAD_SIZE = 10
LEAST = 24
"""The least chance of an event, or of none, in units of 2^-16."""
_SIGNS, _SIZES, _BITS = 60, 69, 157
_LOW = 1 << 32
_EVEN = 1 << 15


def encode(q: np.ndarray, lag: int, signed: bool, out: np.ndarray) -> int:
    """Encode `q` (int32[n], magnitudes below 2^30) into `out` (uint8) and return the block's size, or -1 if too small.

    `lag` is 0 or from 2 to `MAX_LAG`. Without `signed`, only where nonzeros stand is coded.
    """
    num = int(np.count_nonzero(q))
    initial = max(min((num * 65536 + q.size // 2) // max(q.size, 1), 65536 - LEAST), LEAST)
    model = _Model(initial)
    events: list[tuple[int, int]] = []
    nonzero = (q != 0).tolist()
    for i, value in enumerate(q.tolist()):
        events.append((model.learn(_place(nonzero, i, lag, model.run), value != 0), value != 0))
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


def decode(block: np.ndarray, lag: int, signed: bool, q: np.ndarray) -> int:
    """Fill `q` (int32[n]) from `block` (uint8, exactly one block); return 0, or -1 if it is corrupt.

    Without `signed`, nonzeros become 1. `q` may have been written to if the block is corrupt.
    """
    coder = _Decoder(block)
    if not coder.good:
        return -1
    model = _Model(coder.initial)
    nonzero = [False] * q.size
    for i in range(q.size):
        context = _place(nonzero, i, lag, model.run)
        nonzero[i] = coder.event(model, context)
        value = int(nonzero[i])
        if value and signed:
            value = _decode_value(coder, model)
        if not coder.good:
            return -1
        q[i] = value
        model.pass_by(value)
    return 0 if coder.x == _LOW and not coder.words else -1


class _Model:
    """The contexts, and what they are chosen by."""

    def __init__(self, initial: int) -> None:
        self.p = [initial << 12] * _SIGNS + [1 << 27] * (NUM_CONTEXTS - _SIGNS)
        self.n = [0] * NUM_CONTEXTS
        self.run = 0
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

    def pass_by(self, value: int) -> None:
        """Take note of an integer."""
        self.run = 0 if value else self.run + 1
        if value:
            self.signs = [0 if value < 0 else 2, self.signs[0]]
            self.size = min(abs(value).bit_length() - 1, 2)


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


def _place(nonzero: list[bool], i: int, lag: int, run: int) -> int:
    """Return the context of whether the integer at place i is nonzero."""
    group = run if run < 6 else 6 + sum(run >= start for start in (12, 24, 48, 96, 192))
    if not lag:
        return 5 * group
    near = [i - lag, i - lag, i - lag + 1, i - lag - 1, i - 2 * lag]
    return 5 * group + min(sum(nonzero[at] for at in near if at >= 0), 4)


def _encode_value(value: int, model: _Model, events: list[tuple[int, int]]) -> None:
    def put(context: int, event: bool) -> None:
        events.append((model.learn(context, event), event))

    put(_SIGNS + 3 * model.signs[0] + model.signs[1], value < 0)
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
    negative = coder.event(model, _SIGNS + 3 * model.signs[0] + model.signs[1])
    bits = 0
    while bits < MAX_BITS - 1 and coder.event(model, _SIZES + 32 * model.size + bits):
        bits += 1
    known = 1
    for _ in range(bits):
        bit = coder.event(model, _BITS + 8 * bits + known) if known < 8 else coder.bit(_EVEN)
        known = 2 * known + bit
    return -known if negative else known
