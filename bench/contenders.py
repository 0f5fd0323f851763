"""trimtab and its peers as contenders: one list of arrays in, one list of packed arrays out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import trimtab as tt
from bench.harness import Contender
from trimtab.bounds import Bound, Lossless
from trimtab.codecs import Codec
from trimtab.peers import Encoded, Peer

Arrays = Sequence[np.ndarray]


def trimtab_contender(name: str, arrays: Arrays, codecs: Sequence[Codec], bound: Bound = Lossless()) -> Contender:
    """Pack each array with its codec into the bytes of a packed file, checksum included, and back."""

    def encode() -> list[bytes]:
        return [tt.compress(x, bound, codec=codec) for x, codec in zip(arrays, codecs, strict=True)]

    def decode(blobs: list[bytes]) -> list[Any]:
        return [tt.decompress(blob) for blob in blobs]

    return Contender(name, encode, decode)


def into_given_arrays(name: str, contender: Contender, arrays: Arrays) -> Contender:
    """Return a trimtab contender that decodes into arrays which already exist."""
    outputs = [np.zeros_like(x, order="C") for x in arrays]

    def decode(blobs: list[bytes]) -> list[Any]:
        return [tt.decompress(blob, out=out) for blob, out in zip(blobs, outputs, strict=True)]

    return Contender(name, contender.encode, decode)


def peer_contender(peer: Peer, arrays: Arrays, bound: Bound = Lossless()) -> Contender:
    """Compress each array with the peer; arrays that it refuses are copied, and count in full."""
    accepted = [peer.refuses(x, bound) is None for x in arrays]

    def encode() -> list[Any]:
        return [peer.compress(x, bound) if takes else x.copy() for x, takes in zip(arrays, accepted, strict=True)]

    def decode(encoded: list[Any]) -> list[np.ndarray]:
        return [peer.decompress(e) if takes else e.copy() for e, takes in zip(encoded, accepted, strict=True)]

    return Contender(peer.name, encode, decode, is_peer=True)


def num_bytes(encoded: Sequence[bytes | Encoded | np.ndarray]) -> int:
    """Return the size of a contender's packed arrays."""
    sizes = (
        e.num_bytes if isinstance(e, Encoded) else e.nbytes if isinstance(e, np.ndarray) else len(e) for e in encoded
    )
    return sum(sizes)


@dataclass(frozen=True, slots=True)
class Trial:
    """What one contender did with one input, before anything is timed."""

    num_bytes: int
    decoded: list[np.ndarray]


def attempt(contender: Contender, allows: Callable[[list[np.ndarray]], bool] | None = None) -> Trial | str:
    """Run a contender once; return why a peer failed, where it raises or decodes to what is not allowed.

    Raises:
        RuntimeError: trimtab itself decodes to what is not allowed; its other errors pass through.
    """
    try:
        encoded = contender.encode()
        trial = Trial(num_bytes(encoded), contender.decode(encoded))
    except Exception as error:  # a peer may raise anything; the reason goes into the record
        if not contender.is_peer:
            raise
        return f"{type(error).__name__}: {error}"
    if allows is None or allows(trial.decoded):
        return trial
    if not contender.is_peer:
        raise RuntimeError(f"{contender.name} broke its promise")
    return "what it decodes is not within the bound"
