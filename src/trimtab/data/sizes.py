"""Sizes of memory as users write them: ``4 GiB``, ``200MB``, or a share such as ``50%``."""

from __future__ import annotations

import re

from trimtab.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("kmgt", 1)}
_MOST = 2**63 - 1


def parse_size(text: str | int) -> int:
    """Return a number of bytes: ``4096``, ``64KiB``, ``4 GiB`` (powers of 1024), ``200MB`` (of 1000).

    Raises:
        UsageError: the text is not a size, or is less than a byte, or of 2^63 bytes and more.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(text), re.IGNORECASE)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise UsageError(f"{text!r} is not a size; write it as 4096, 64KiB or 200MB")
    number = float(match[1]) * unit
    num_bytes = int(match[1]) * unit if match[1].isdigit() else round(min(number, 2.0**64))
    if not 1 <= num_bytes <= _MOST:
        raise UsageError(f"{text!r} is out of range; a size is from 1 to 2^63 - 1 bytes")
    return num_bytes


def parse_share(text: str | int, *, of: int) -> int:
    """Return a number of bytes: a size as above, zero, or a percentage of `of`, rounded down.

    Raises:
        UsageError: the text is neither, or out of range.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", str(text))
    if match is None:
        return 0 if re.fullmatch(r"\s*0+\s*([kmgt]?i?b)?\s*", str(text), re.IGNORECASE) else parse_size(text)
    share = float(match[1])
    if share > 1000:
        raise UsageError(f"{text!r} is out of range; a share is from 0% to 1000%")
    return int(of * share / 100)
