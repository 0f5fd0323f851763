"""A plain transfer over TCP between the nodes of a netlab, to see what rate its links reach.

Run as a script, once a node: in turn each node sends to the next, and prints the bits a second that arrived there.
It needs nothing but Python.
"""

from __future__ import annotations

import os
import socket
import sys
import time

_PIECE = 1 << 16
_PATIENCE_SECONDS = 60.0


def main(addresses: list[str], port: int, num_bytes: list[int]) -> None:
    """Send ``num_bytes[k]`` from node k to node k + 1, for each k in turn; NODE_RANK says which node this is."""
    me, count = int(os.environ["NODE_RANK"]), len(addresses)
    with socket.create_server(("", port)) as server:
        server.settimeout(_PATIENCE_SECONDS)
        for sender in range(count):
            if me == sender:
                sys.stdout.write(f"{_send(addresses[(me + 1) % count], port, num_bytes[sender])}\n")
            elif me == (sender + 1) % count:
                _receive(server)


def _send(address: str, port: int, num_bytes: int) -> float:
    piece = bytes(_PIECE)
    with _connect(address, port) as connection:
        connection.sendall(piece)  # uses up what a limiter lets pass at once
        connection.recv(1)
        begun = time.perf_counter()
        for _ in range(0, num_bytes, _PIECE):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # all has arrived
        return 8 * _PIECE * -(-num_bytes // _PIECE) / (time.perf_counter() - begun)


def _receive(server: socket.socket) -> None:
    with server.accept()[0] as connection:
        connection.settimeout(_PATIENCE_SECONDS)
        num_left = _PIECE
        while num_left and (data := connection.recv(num_left)):
            num_left -= len(data)
        connection.sendall(b"1")
        while connection.recv(1 << 20):
            pass
        connection.sendall(b"1")


def _connect(address: str, port: int) -> socket.socket:
    """Connect to a node that may not listen yet, or not be at the other's turn."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=_PATIENCE_SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            connection.settimeout(_PATIENCE_SECONDS)
            return connection


if __name__ == "__main__":
    main(sys.argv[1].split(","), int(sys.argv[2]), [int(size) for size in sys.argv[3].split(",")])
