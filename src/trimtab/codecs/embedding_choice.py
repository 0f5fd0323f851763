"""Which encoder suits a table of vectors: the one with which its exchange is predicted to end first.

Sending B bytes over a link of W bytes a second takes B / W exactly, and ``B / CR / W`` encoded, with the time to encode
and decode on top: the speed-up is ``1 / (1 / CR + W * (1 / T_encode + 1 / T_decode))`` for throughputs T in bytes of
input a second (allenfengjr/dlrm_comp, `speedup_calculation.py`). Ratios are measured; throughputs come from a model
that was fitted to timings of one machine (`bench.encoders`) and is the same on all: what is chosen, and with it the
bits of a training run, repeats anywhere, and ranks of different speed choose alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from trimtab.codecs.embedding_slice import Encoder, Slice

NANOSECONDS = {
    "exact": (5400, 0, 0.15, 0),
    "unique": (34000, 9.8, 0.61, 0.16),
    "entropy": (32000, 0, 1.3, 0),
    "vector_lz": (23000, 6.3, 0.57, 0.048),
    "dedup": (61000, 12, 0.47, 1.1),
}
"""To encode and decode with each encoder on one core: a slice, and of it a row, an element, and an element of the rows
that the payload holds."""


class Trial(NamedTuple):
    """What an encoder made of some vectors."""

    num_bytes: int
    num_encoded: int
    seconds: float
    """Predicted, to encode and decode."""

    def seconds_at(self, bandwidth: float) -> float:
        """Return the predicted seconds until the vectors are there, over a link of `bandwidth` bytes a second."""
        return self.num_encoded / bandwidth + self.seconds

    def speedup(self, bandwidth: float) -> float:
        """Return the predicted speed-up over sending the vectors as they are."""
        return self.num_bytes / bandwidth / self.seconds_at(bandwidth) if self.num_bytes else 1.0


def num_held(given: Slice, encoder: Encoder) -> int:
    """Return how many rows of a slice its payload holds; of vector-LZ the least that it may hold."""
    if encoder == "unique":
        return given.num_distinct
    return given.num_distinct_codes if encoder in ("vector_lz", "dedup") else len(given.x)


def predicted_seconds(given: Slice, encoder: Encoder) -> float:
    """Return what encoding and decoding a slice takes."""
    num_rows, num_columns = given.x.shape
    whole, row, element, held = NANOSECONDS[encoder]
    return 1e-9 * (whole + row * num_rows + num_columns * (element * num_rows + held * num_held(given, encoder)))


def try_encoders(slices: Sequence[Slice], encoders: Iterable[Encoder]) -> dict[Encoder, Trial]:
    """Encode the slices of a table with each encoder."""
    num_bytes = sum(part.x.nbytes for part in slices)
    trials = {}
    for encoder in encoders:
        seconds = sum(predicted_seconds(part, encoder) for part in slices)
        trials[encoder] = Trial(num_bytes, sum(part.encode(encoder).size for part in slices), seconds)
    return trials


def best_encoder(trials: Mapping[Encoder, Trial], bandwidth: float) -> Encoder:
    """Return the encoder with the shortest predicted time; of equal ones the first."""
    return min(trials, key=lambda encoder: trials[encoder].seconds_at(bandwidth))
