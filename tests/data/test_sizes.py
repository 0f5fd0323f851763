from __future__ import annotations

import pytest

from trimtab.data.sizes import parse_share, parse_size
from trimtab.errors import UsageError


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        (81, 81), ("4096", 4096), ("4 GiB", 2**32), ("64KiB", 65536), ("200MB", 200_000_000), ("1.5 gib", 3 * 2**29),
        ("2k", 2000), ("1T", 10**12), (" 7 B ", 7), (str(2**63 - 1), 2**63 - 1),
    ],
)  # fmt: skip
def test_sizes(text, num_bytes):
    assert parse_size(text) == parse_share(text, of=5) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "4 XiB", "-1", "0", "1e9", "4 GiB 3", "iB", "5i", "9" * 400, "9" * 25 + ".5", "nan"]
)
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="is not a size|out of range"):
        parse_size(text)


def test_shares():
    assert parse_share("50%", of=1001) == 500
    assert parse_share("12.5 %", of=800) == 100
    assert parse_share("0", of=800) == parse_share("0%", of=800) == parse_share("0 GiB", of=800) == 0
    for text in ("half", "1001%", "-5%"):
        with pytest.raises(UsageError):
            parse_share(text, of=800)
