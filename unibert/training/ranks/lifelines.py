"""Lifelines: a connection from every rank to rank 0, which the system closes when a process dies.

The collectives do not always notice. Where a rank is killed in the middle of a message, gloo's reader waits on until
its time-out: Pair::signalException of its TCP transport wakes those that wait for a message, not the one that reads it.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
from contextlib import suppress
from typing import Any

_KEY = "lifelines"
_FAREWELL = b"farewell"
_CONNECT_SECONDS = 10.0


class Lifelines:
    """This process's end of the lines.

    Args:
        rank: of this process.
        world_size: number of ranks, all of which make one of these.
        store: of the ranks, with ``get`` and ``set``; MASTER_ADDR is where rank 0 is.
    """

    def __init__(self, rank: int, world_size: int, store: Any) -> None:
        self._listener: socket.socket | None = None
        self._lines: list[socket.socket] = []
        if rank == 0:
            # Whoever else connects, a port scan for one, does not know the word.
            self._word = secrets.token_hex(16).encode()
            self._listener = _listen(world_size)
            store.set(_KEY, f"{self._listener.getsockname()[1]} {self._word.decode()}")
        else:
            port, word = store.get(_KEY).decode().split()
            # Without a line this rank is left to the watchdog's time-out.
            with suppress(OSError):
                line = socket.create_connection((os.environ["MASTER_ADDR"], int(port)), timeout=_CONNECT_SECONDS)
                line.settimeout(None)
                line.sendall(f"{word} {rank} ".encode())
                self._lines.append(line)

    def lost_rank(self) -> int | None:
        """Wait until a rank has ended without a farewell, for ever if need be, and tell the others.

        Returns:
            Its number; None where rank 0 has said farewell or this rank has no line.
        """
        if self._listener is not None:
            lost = self._lost_of_all(self._listener)
            for line in list(self._lines):
                _say(line, str(lost).encode())
            return lost
        for line in self._lines:
            said = _hear(line)
            return None if said == _FAREWELL else int(said or b"0")
        return None

    def farewell(self) -> None:
        """To be said by a rank whose end is no reason for the others to end."""
        for line in list(self._lines):
            _say(line, _FAREWELL)

    def _lost_of_all(self, listener: socket.socket) -> int:
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    line, _ = listener.accept()
                    self._lines.append(line)
                    selector.register(line, selectors.EVENT_READ, bytearray())
                    continue
                line = key.fileobj  # type: ignore[assignment]
                said = _hear(line)
                key.data.extend(said)
                if said:
                    continue
                selector.unregister(line)
                self._lines.remove(line)
                line.close()
                word, _, rest = bytes(key.data).partition(b" ")
                if word == self._word and not rest.endswith(_FAREWELL):
                    return int(rest)


def _listen(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):
            return socket.create_server(("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)


def _say(line: socket.socket, words: bytes) -> None:
    with suppress(OSError):
        line.sendall(words)


def _hear(line: socket.socket) -> bytes:
    """What was said; nothing once the other process has ended."""
    try:
        return line.recv(256)
    except OSError:
        return b""
