"""What is known of connections between ranks: it names the rank behind a slow or dead link, which durations cannot.

The paper counts what each rank sends and receives inside the library. Outside of it, on TCP, the system's counters
say as much (``ss -ti``): how long a connection was busy, and how much was acknowledged.
"""

from __future__ import annotations

import numpy as np

EDGE = np.dtype(
    [
        ("rank", "<i4"),  # the sender
        ("peer", "<i4"),  # the receiver
        ("sent", "<i8"),  # bytes acknowledged in the window
        ("unsent", "<i8"),  # bytes that wait to be sent or acknowledged now
        ("busy", "<f8"),  # share of the window in which there was something to send, 0 to 1
        ("cost", "<f8"),  # busy seconds for each byte that was sent in the window; NaN where there was none
        ("cost_before", "<f8"),  # the same before the window; NaN where less was sent than in it
    ]
)
"""One direction of a connection over a window of time, as its sender's host sees it."""

_DATA = 0.1  # of the most that an edge carried: less is no data, but keeping in touch
_BUSY, _VERY, _TIMES, _ALIKE = 0.15, 0.5, 4.0, 3.0
_QUICK = 1e-9  # seconds for a byte: what takes less is not told apart by the kernel's ticks


def slow_ranks(edges: np.ndarray) -> tuple[tuple[int, ...], list[str]]:
    """Return the ranks at which the slow connections meet, and why; nobody where there are none.

    Of the edges that carry data those are slow that were busy for at least 0.15 of the time, and took for a byte four
    times as long as the quickest quarter, four times as long as they themselves did before (or were busy for half of
    the time, where nothing was sent before), and a third of the longest of all at least. Short messages take as long as
    their receiver waits to acknowledge them, about 40 ms, so that none of these would do alone. One slow edge alone
    names both of its ends.
    """
    data = edges[edges["sent"] >= _DATA * max(int(edges["sent"].max(initial=0)), 1)]
    if data.size < 2:
        return (), []
    cost, before = data["cost"], data["cost_before"]
    usual = max(float(np.quantile(cost, 0.25, method="lower")), _QUICK)
    own = np.where(np.isnan(before), usual, np.maximum(before, _QUICK))
    has_changed = cost >= _TIMES * own
    is_worse = (cost >= _TIMES * usual) | (has_changed & (own <= usual))
    is_new = np.isnan(before) & (data["busy"] >= _VERY)
    is_slow = is_worse & (has_changed | is_new) & (data["busy"] >= _BUSY) & (_ALIKE * cost >= cost.max())
    slow = data[is_slow]
    if not slow.size:
        return (), []
    ranks, counts = np.unique(np.concatenate([slow["rank"], slow["peer"]]), return_counts=True)
    best = ranks[counts == counts.max()]
    words = [
        f"{edge['rank']} -> {edge['peer']} was busy sending for {edge['busy']:.0%} of the time,"
        f" at {1e-6 / edge['cost']:.3g} MB/s; {1e-6 / max(past, usual):.3g} are usual"
        for edge, past in sorted(zip(slow, own[is_slow], strict=True), key=lambda pair: -pair[0]["busy"])[:4]
    ]
    return tuple(best.tolist()), words


def stalled_ranks(edges: np.ndarray, ranks: np.ndarray) -> tuple[tuple[int, ...], list[str]]:
    """Return the ranks, of those that hang together inside an operation, whose sending has stopped, and why.

    It is the one that has sent clearly less than the others (half of the median); else the senders whose bytes are
    stuck; nobody where all are alike.
    """
    mine = edges[np.isin(edges["rank"], ranks) & np.isin(edges["peer"], ranks)]
    senders, places = np.unique(mine["rank"], return_inverse=True)
    if senders.size < 2:
        return (), []
    sent = np.bincount(places, mine["sent"].astype(np.float64))
    unsent = np.bincount(places, mine["unsent"].astype(np.float64))
    least = senders[sent < 0.5 * np.median(sent)]
    if 0 < least.size < senders.size / 2:
        return tuple(least.tolist()), [f"{least.size} of {senders.size} senders sent less than half of what is usual"]
    stuck = senders[unsent > 0]
    if 0 < stuck.size <= senders.size / 2:
        return tuple(stuck.tolist()), [f"bytes of {stuck.size} of {senders.size} senders are stuck"]
    return (), []
