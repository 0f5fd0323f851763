"""Which encoder suits a table of vectors: the one with which its exchange is predicted to end first.

Sending B bytes over a link of W bytes a second takes B / W exactly, and ``B / CR / W`` encoded, with the time to encode
and decode on top: the speed-up is ``1 / (1 / CR + W * (1 / T_encode + 1 / T_decode))`` for throughputs T in bytes of
input a second (allenfengjr/dlrm_comp, `speedup_calculation.py`). Ratios are measured, throughputs come from a model:
what is chosen, and with it the bits of a training run, repeats on any machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from trimtab.codecs.embedding_slice import Encoder, Slice

NANOSECONDS = {
    "exact": (20_000, 0.0, 0.25, 0.0),
    "unique": (40_000, 15.0, 0.2, 0.5),
    "entropy": (50_000, 0.0, 0.9, 0.0),
    "vector_lz": (45_000, 10.0, 0.3, 0.3),
    "dedup": (65_000, 20.0, 0.3, 0.9),
}
"""To encode and decode with each encoder on one core: a slice, and of it a row, an element, and an element in rows
that are not left out as equal to others. Estimated from timings of slices of 64 to 8192 rows, 16 to 128 columns."""


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


def predicted_seconds(encoder: Encoder, num_rows: int, num_columns: int, num_held: int) -> float:
    """Return what encoding and decoding a slice takes, of whose rows `num_held` are in the payload."""
    whole, row, element, held = NANOSECONDS[encoder]
    return 1e-9 * (whole + row * num_rows + num_columns * (element * num_rows + held * num_held))


def try_encoders(slices: Sequence[Slice], encoders: Iterable[Encoder]) -> dict[Encoder, Trial]:
    """Encode the slices of a table with each encoder."""
    num_bytes = sum(part.x.nbytes for part in slices)
    trials = {}
    for encoder in encoders:
        seconds = 0.0
        for part in slices:
            held = {"unique": part.num_distinct, "dedup": part.num_distinct_codes}.get(encoder)
            held = part.num_distinct_codes if encoder == "vector_lz" else len(part.x) if held is None else held
            seconds += predicted_seconds(encoder, len(part.x), part.x.shape[1], held)
        trials[encoder] = Trial(num_bytes, sum(part.encode(encoder).size for part in slices), seconds)
    return trials


def best_encoder(trials: Mapping[Encoder, Trial], bandwidth: float) -> Encoder:
    """Return the encoder with the shortest predicted time; of equal ones the first."""
    return min(trials, key=lambda encoder: trials[encoder].seconds_at(bandwidth))
