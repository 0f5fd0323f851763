"""Peers: other compressors behind one shape, for benchmarks and for `trimtab compare`.

None of them is a dependency, except zstandard; each is imported when it is first asked whether it is available.
"""

from __future__ import annotations

from trimtab.errors import UsageError
from trimtab.peers.bounded import SPERR, SZ3, ZFP
from trimtab.peers.lossless import Blosc2, OpenZL, Pcodec, ZipNN, Zstd
from trimtab.peers.peer import Encoded, Peer

__all__ = [
    "PEERS",
    "SPERR",
    "SZ3",
    "ZFP",
    "Blosc2",
    "Encoded",
    "OpenZL",
    "Pcodec",
    "Peer",
    "ZipNN",
    "Zstd",
    "find_peer",
]

PEERS: tuple[Peer, ...] = (
    ZipNN(),
    OpenZL(coder="Huffman"),
    OpenZL(coder="Fse"),
    Pcodec(level=8),
    Blosc2(codec="ZSTD", filter="SHUFFLE", level=1),
    Blosc2(codec="LZ4", filter="BITSHUFFLE", level=5),
    Zstd(level=3),
    SZ3(algorithm="INTERP_LORENZO"),
    SZ3(algorithm="LORENZO_REG"),
    ZFP(),
    SPERR(),
)
"""Every peer at its best documented setting, one thread each: the lossless ones first."""


def find_peer(name: str) -> Peer:
    """Return the peer called `name`, such as ``zipnn``.

    Raises:
        UsageError: there is none of that name.
    """
    for peer in PEERS:
        if peer.name == name:
            return peer
    raise UsageError(f"unknown peer {name!r}; expected one of {', '.join(peer.name for peer in PEERS)}")
