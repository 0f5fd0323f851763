"""Interface counters: what /proc/net/dev says, and which interface is this rank's."""

from __future__ import annotations

import os
import socket

import pytest

from trimtab.comm import counters
from trimtab.errors import UsageError


def test_what_the_loopback_carries_is_counted():
    before = counters.read("lo")
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        server.accept()[0] as other,
    ):
        one.sendall(bytes(100_000))
        one.shutdown(socket.SHUT_WR)
        while other.recv(1 << 16):
            pass
    carried = counters.read("lo") - before
    assert carried.sent_bytes >= 100_000
    assert carried.received_bytes >= 100_000
    assert counters.read("lo", process=os.getpid()).sent_bytes >= before.sent_bytes + 100_000


def test_every_interface_is_there_and_no_other():
    assert sorted(counters.read_all()) == sorted(name for _, name in socket.if_nameindex())
    with pytest.raises(UsageError, match="no network interface 'nowhere0'; there are .*lo"):
        counters.read("nowhere0")


def test_traffic_adds_up():
    one, other = counters.Traffic(5, 7), counters.Traffic(1, 2)
    assert one - other == counters.Traffic(4, 5)
    assert (one - other) + other == one


@pytest.mark.parametrize(
    ("variables", "interface"),
    [
        ({"GLOO_SOCKET_IFNAME": "lo"}, "lo"),
        ({"GLOO_SOCKET_IFNAME": "eth1,eth2"}, "eth1"),
        ({"NCCL_SOCKET_IFNAME": "=link0"}, "link0"),
        ({"TRIMTAB_NETLAB_LINK": "link0", "GLOO_SOCKET_IFNAME": "lo"}, "link0"),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, None),
        ({}, None),
    ],
)
def test_the_environment_names_the_link(monkeypatch, variables, interface):
    for variable in counters.LINK_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    if interface is None:
        with pytest.raises(UsageError, match="set GLOO_SOCKET_IFNAME"):
            counters.link_interface()
    else:
        assert counters.link_interface() == interface
