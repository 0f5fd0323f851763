"""The header that every payload carries, so that what arrives is what was meant.

A message is a header of 40 bytes and the payload behind it. The header, little-endian:

    bytes    field
    0-3      magic: ``TTW`` and the version, 1
    4-7      sender: its rank in the default group, uint32
    8-15     settings: XXH3-64 of the settings that all ranks agreed on, uint64
    16-23    sequence: the number of the message round, counted alike on all ranks, uint64
    24-31    size of the payload in bytes, uint64
    32-39    checksum: XXH3-64 of the payload with zeros behind it up to a multiple of 1024 bytes, uint64

The receiver knows what every field must say, and refuses a message of which one differs.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
import xxhash

from trimtab.errors import PayloadError

__all__ = ["ALIGNMENT", "HEADER_BYTES", "Expected", "message_bytes", "open_message", "seal"]

_HEADER = struct.Struct("<4sIQQQQ")
HEADER_BYTES = _HEADER.size
ALIGNMENT = 8
"""Messages and the parts of a payload start at multiples of this many bytes."""
_MAGIC = b"TTW\x01"
_BLOCK = 1024  # of the checksum: what the device's kernel takes at once
_ZEROS = bytes(_BLOCK)


class Expected(NamedTuple):
    """What the header of a message says, but for its checksum."""

    sender: int
    settings: int
    sequence: int
    size: int


def message_bytes(size: int) -> int:
    """Return the size in bytes of a message with a payload of `size` bytes, which the next one can stand behind."""
    return HEADER_BYTES + -(-size // ALIGNMENT) * ALIGNMENT


def seal(message: torch.Tensor, header: Expected) -> None:
    """Write the header before the payload of `header.size` bytes that stands in `message` (uint8, contiguous)."""
    end = HEADER_BYTES + header.size
    message[end:] = 0
    words = bytearray(_HEADER.pack(_MAGIC, *header, _checksum(message[HEADER_BYTES:end])))
    message[:HEADER_BYTES] = torch.frombuffer(words, dtype=torch.uint8)


def open_message(message: torch.Tensor, expected: Expected) -> torch.Tensor:
    """Return the payload of `message` (uint8, contiguous), a view, if its header says what is expected.

    Raises:
        PayloadError: a field of the header differs, or the payload does not match its checksum.
    """
    end = HEADER_BYTES + expected.size
    if message.numel() < end:
        raise PayloadError(f"a message from rank {expected.sender} of {message.numel()} bytes; expected {end}")
    magic, *fields, checksum = _HEADER.unpack(message[:HEADER_BYTES].cpu().numpy())
    if magic != _MAGIC:
        raise PayloadError(
            f"a message from rank {expected.sender} starts with {magic!r}; expected {_MAGIC!r}: it is damaged, or the"
            " ranks run different versions of trimtab"
        )
    if tuple(fields) != tuple(expected):
        told = ", ".join(
            f"{name} {got:#x}; expected {want:#x}" if name == "settings" else f"{name} {got}; expected {want}"
            for name, want, got in zip(Expected._fields, expected, fields, strict=True)
            if got != want
        )
        raise PayloadError(f"a message from rank {expected.sender} of round {expected.sequence} says {told}")
    payload = message[HEADER_BYTES:end]
    found = _checksum(payload)
    if found != checksum:
        raise PayloadError(
            f"the payload from rank {expected.sender} of round {expected.sequence}, {expected.size} bytes, has checksum"
            f" {found:#018x}; its header says {checksum:#018x}: it was damaged on the way"
        )
    return payload


def _checksum(payload: torch.Tensor) -> int:
    rest = -payload.numel() % _BLOCK
    if payload.is_cuda and payload.numel():
        from trimtab.kernels.xxh3.triton import digests

        (found,) = digests(torch.nn.functional.pad(payload, (0, rest)).reshape(1, -1))
        return found
    state = xxhash.xxh3_64(payload.cpu().numpy())
    state.update(_ZEROS[:rest])
    return state.intdigest()
