"""The header of a message: every byte of it, and every byte behind it, counts."""

from __future__ import annotations

import pytest
import torch
import xxhash

from trimtab.comm.wire import ALIGNMENT, HEADER_BYTES, Expected, message_bytes, open_message, seal
from trimtab.errors import PayloadError

EXPECTED = Expected(sender=3, settings=0xFEDCBA9876543210, sequence=77, size=13)


def message(expected: Expected = EXPECTED) -> torch.Tensor:
    sealed = torch.full((message_bytes(expected.size),), 0xAB, dtype=torch.uint8)
    sealed[HEADER_BYTES : HEADER_BYTES + expected.size] = torch.arange(expected.size, dtype=torch.uint8)
    seal(sealed, expected)
    return sealed


def test_a_message_is_what_the_docstring_says():
    sealed = message()
    assert sealed.numel() % ALIGNMENT == 0 and sealed[HEADER_BYTES + 13 :].tolist() == [0, 0, 0]
    assert bytes(sealed[:4].tolist()) == b"TTW\1"
    checksum = int.from_bytes(bytes(sealed[32:40].tolist()), "little")
    assert checksum == xxhash.xxh3_64_intdigest(bytes(range(13)) + bytes(1024 - 13))
    assert open_message(sealed, EXPECTED).tolist() == list(range(13))
    empty = EXPECTED._replace(size=0)
    assert open_message(message(empty), empty).numel() == 0


@pytest.mark.parametrize("at", range(HEADER_BYTES + 13))
def test_a_flipped_bit_anywhere_is_noticed(at):
    sealed = message()
    sealed[at] ^= 1 << at % 8
    field = [
        "starts with",
        "sender",
        "settings",
        "settings",
        "sequence",
        "sequence",
        "size",
        "size",
        "checksum",
        "checksum",
    ]
    with pytest.raises(PayloadError, match=f"(?s)rank 3.*{field[at // 4] if at < HEADER_BYTES else 'damaged'}"):
        open_message(sealed, EXPECTED)


def test_a_message_that_is_too_short_is_refused():
    for size in (0, 39, HEADER_BYTES + 12):
        with pytest.raises(PayloadError, match=f"from rank 3 of {size} bytes; expected 53"):
            open_message(message()[:size], EXPECTED)


@pytest.mark.parametrize("field", Expected._fields)
def test_what_was_meant_otherwise_is_refused(field):
    other = EXPECTED._replace(**{field: getattr(EXPECTED, field) - 1})
    with pytest.raises(PayloadError, match=field):
        open_message(message(), other)
