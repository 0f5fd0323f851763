"""Differences between the elements of an array and of its base, the specification.

Elements are unsigned words of w bits, in blocks of 64, the last one shorter. Blocks whose words all equal the base's
are left out; the others are *kept*. A kept word x stands for its difference ``m(x) - m(b) mod 2**w`` from the base's b,
where m is the identity, or, with `signed_float`, flips all bits but the sign where that is set: the order of floats
is then that of signed integers, and neighbouring floats, also -0.0 and 0.0, differ by one.

The *class* of a base's word is its eight bits below the sign, of a float mostly its exponent; without `signed_float`,
and of words of 8 bits, it is 0.
"""

from __future__ import annotations

import numpy as np

BLOCK = 64


def subtract(
    words: np.ndarray,
    base: np.ndarray,
    signed_float: bool,
    kept: np.ndarray,
    differences: np.ndarray,
    classes: np.ndarray,
) -> int:
    """Write which blocks are kept to `kept` (bool), and return how many words they have.

    Their differences go to the start of `differences` (of the words' dtype), their bases' classes to that of `classes`
    (uint8); both are as long as `words`.
    """
    for k in range(kept.size):
        kept[k] = bool((words[BLOCK * k :][:BLOCK] != base[BLOCK * k :][:BLOCK]).any())
    chosen = _chosen(kept, words.size)
    count = int(np.count_nonzero(chosen))
    differences[:count] = _ordered(words[chosen], signed_float) - _ordered(base[chosen], signed_float)
    return classify(base, signed_float, kept, classes)


def classify(base: np.ndarray, signed_float: bool, kept: np.ndarray, classes: np.ndarray) -> int:
    """Write the classes (uint8) of the words in kept blocks, and return how many these are."""
    chosen = base[_chosen(kept, base.size)]
    bits = 8 * base.itemsize
    if signed_float and bits > 8:
        classes[: chosen.size] = chosen >> chosen.dtype.type(bits - 9) & chosen.dtype.type(255)
    else:
        classes[: chosen.size] = 0
    return chosen.size


def add(differences: np.ndarray, base: np.ndarray, signed_float: bool, kept: np.ndarray, words: np.ndarray) -> None:
    """Fill `words` from the base and the differences in kept blocks, of which there are enough."""
    chosen = _chosen(kept, words.size)
    count = np.count_nonzero(chosen)
    words[...] = base
    # the map is its own inverse
    words[chosen] = _ordered(_ordered(base[chosen], signed_float) + differences[:count], signed_float)


def tally(
    tokens: np.ndarray, classes: np.ndarray, thresholds: np.ndarray, contexts: np.ndarray, counts: np.ndarray
) -> None:
    """Write the context (uint8) of each class (uint8), and to `counts` how often each token comes with each context.

    A context is the number of `thresholds` (uint8) that a class reaches. Tokens are uint8 below 128, `counts` is
    int64[contexts, 128].
    """
    contexts[...] = np.searchsorted(thresholds, classes, side="right")
    counts[...] = 0
    np.add.at(counts, (contexts, tokens), 1)


def _chosen(kept: np.ndarray, num_words: int) -> np.ndarray:
    return np.repeat(kept, BLOCK)[:num_words]


def _ordered(words: np.ndarray, signed_float: bool) -> np.ndarray:
    """Return m(x) for each word x."""
    top = 8 * words.itemsize - 1
    word = words.dtype.type
    return np.where(words >> word(top) == 1, words ^ word((1 << top) - 1), words) if signed_float else words
