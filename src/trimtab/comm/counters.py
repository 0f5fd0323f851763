"""Bytes that crossed a network interface, from ``/proc/net/dev``.

Not from ``/sys/class/net``: inside a network namespace that shows the interfaces of the machine around it.
The counters hold what the interface carried: payload, headers and acknowledgements, of every program. On ``lo`` each
byte is sent and received, so only one of the two columns counts there.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from trimtab.errors import UsageError

LINK_VARIABLES = ("TRIMTAB_NETLAB_LINK", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Environment variables that may name this rank's interface, in the order in which they are asked."""


class Traffic(msgspec.Struct, frozen=True):
    """Bytes sent and received, since the interface came to be or between two readings: ``later - earlier``."""

    sent_bytes: int
    received_bytes: int

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.sent_bytes + other.sent_bytes, self.received_bytes + other.received_bytes)

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(self.sent_bytes - earlier.sent_bytes, self.received_bytes - earlier.received_bytes)


def read(interface: str | None = None, *, process: int | str = "self") -> Traffic:
    """Return the counters of an interface, by default of this rank's link (`link_interface`).

    `process` (an id) reads them in the network namespace of another process.

    Raises:
        UsageError: there is no such interface; the message names those there are.
    """
    if interface is None:
        interface = link_interface()
    found = read_all(process=process)
    if interface not in found:
        raise UsageError(f"there is no network interface {interface!r}; there are {', '.join(found) or 'none'}")
    return found[interface]


def read_all(*, process: int | str = "self") -> dict[str, Traffic]:
    """Return the counters of all interfaces by name."""
    lines = Path(f"/proc/{process}/net/dev").read_text().splitlines()[2:]
    found = {}
    for line in lines:
        name, _, columns = line.partition(":")
        values = columns.split()
        found[name.strip()] = Traffic(sent_bytes=int(values[8]), received_bytes=int(values[0]))
    return found


def link_interface() -> str:
    """Return the interface that this rank's collectives use, as the environment names it.

    Raises:
        UsageError: it names none.
    """
    for variable in LINK_VARIABLES:
        # gloo and NCCL take lists; NCCL also patterns, which begin with ^ or =
        if (name := os.environ.get(variable, "").split(",")[0].lstrip("=")) and not name.startswith("^"):
            return name
    raise UsageError(f"no interface is named; set GLOO_SOCKET_IFNAME, one of {', '.join(read_all())}")
