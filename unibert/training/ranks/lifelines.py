"""Lifelines: a connection from every rank to rank 0, which the operating system closes when a process dies.

Collectives do not always notice a death. If a rank is killed in the middle of a message, gloo's reader waits until its
time-out: Pair::signalException of its TCP transport wakes those that wait for a message, not the one that reads it.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
from contextlib import suppress
from typing import Any

_KEY = "lifelines"
_CLOSING = b"closing"
"""Message of a rank whose end is no reason for the others to end."""
_CONNECT_SECONDS = 10.0


class Lifelines:
    """This process's ends of the connections.

    Args:
        rank: rank of this process.
        world_size: number of ranks. Every rank makes one of these.
        store: store shared by the ranks, with ``get`` and ``set``. MASTER_ADDR is the address of rank 0.
    """

    def __init__(self, rank: int, world_size: int, store: Any) -> None:
        self._listener: socket.socket | None = None
        self._connections: list[socket.socket] = []
        if rank == 0:
            # Strangers may connect, a port scan for one; they do not know the token.
            self._token = secrets.token_hex(16).encode()
            self._listener = _listen(world_size)
            store.set(_KEY, f"{self._listener.getsockname()[1]} {self._token.decode()}")
        else:
            port, token = store.get(_KEY).decode().split()
            # Without a connection, only the watchdog's time-out covers this rank.
            with suppress(OSError):
                connection = socket.create_connection((os.environ["MASTER_ADDR"], int(port)), timeout=_CONNECT_SECONDS)
                connection.settimeout(None)
                connection.sendall(f"{token} {rank} ".encode())
                self._connections.append(connection)

    def wait_for_lost_rank(self) -> int | None:
        """Block until a rank has ended without :meth:`close`; rank 0 passes the rank on to the others.

        Returns:
            The lost rank; None if rank 0 has closed its lifelines or this rank has no connection.
        """
        if self._listener is not None:
            lost = self._first_lost(self._listener)
            for connection in list(self._connections):
                _send(connection, str(lost).encode())
            return lost
        for connection in self._connections:
            message = _receive(connection)
            return None if message == _CLOSING else int(message or b"0")
        return None

    def close(self) -> None:
        """Announce that the end of this rank is no reason for the others to end."""
        for connection in list(self._connections):
            _send(connection, _CLOSING)

    def _first_lost(self, listener: socket.socket) -> int:
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    self._connections.append(connection)
                    selector.register(connection, selectors.EVENT_READ, bytearray())
                    continue
                connection = key.fileobj  # type: ignore[assignment]
                message = _receive(connection)
                key.data.extend(message)
                if message:
                    continue
                selector.unregister(connection)
                self._connections.remove(connection)
                connection.close()
                token, _, rest = bytes(key.data).partition(b" ")
                if token == self._token and not rest.endswith(_CLOSING):
                    return int(rest)


def _listen(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):
            return socket.create_server(("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)


def _send(connection: socket.socket, message: bytes) -> None:
    with suppress(OSError):
        connection.sendall(message)


def _receive(connection: socket.socket) -> bytes:
    """The next bytes; empty once the other process has ended."""
    try:
        return connection.recv(256)
    except OSError:
        return b""
