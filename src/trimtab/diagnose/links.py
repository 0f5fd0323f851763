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
    ]
)
"""One direction of a connection over a window of time, as its sender's host sees it."""

_DATA = 0.1  # of the most that an edge carried: less is no data, but keeping in touch
_BUSY, _TIMES = 0.3, 4.0


def slow_ranks(edges: np.ndarray) -> tuple[tuple[int, ...], list[str]]:
    """Return the ranks at which the slow connections meet, and why.

    Of the edges that carry data, those are slow that are busy for at least 0.3 of the time, and 4 times as long as the
    lower quartile. One such edge alone names both of its ends.
    """
    data = edges[edges["sent"] >= _DATA * max(int(edges["sent"].max(initial=0)), 1)]
    if data.size < 2:
        return (), []
    usual = float(np.quantile(data["busy"], 0.25))
    slow = data[(data["busy"] >= _BUSY) & (data["busy"] >= _TIMES * usual)]
    if not slow.size:
        return (), []
    ends = np.concatenate([slow["rank"], slow["peer"]])
    ranks, counts = np.unique(ends, return_counts=True)
    best = ranks[counts == counts.max()]
    words = [
        f"{edge['rank']} -> {edge['peer']} was busy sending for {edge['busy']:.0%} of the time, usual is {usual:.0%}"
        for edge in slow[np.argsort(-slow["busy"])][:4]
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
