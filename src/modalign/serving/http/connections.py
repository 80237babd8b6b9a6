"""Connections: how many there may be, for how long each may keep the server waiting, and who goes first.

uvicorn closes a connection that is silent after an answer, and nothing else. Here one that sends nothing, or
its request drop by drop, or does not take its answer, is given up; and where there are too many, or the process
has no file descriptor left, those that are not being answered make room, the one that waits longest first. So
whoever asks for /health is heard.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import time
from collections.abc import Callable, Collection
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from modalign.serving.http.settings import Settings

log = logging.getLogger("modalign.serving")

RESERVE = 8  # connections beside those being answered: for /health
FILES = 32  # descriptors kept for files, media and addresses that are read
LEAST = 16  # connections, however few descriptors there are
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
PAUSE = 0.01  # seconds after which a connection that was given up has closed its descriptor
SILENCE = 60.0  # seconds between two lines of the log about the same thing
PIECES, PIECE = (
    10_000,
    256,
)  # a body in more pieces than that must have so many bytes in each, on average


def connection_limit(settings: Settings) -> int:
    """Connections that the process can have: fewer than asked for where it may open fewer files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return settings.connections
    return max(LEAST, min(settings.connections, files - len(os.listdir("/dev/fd")) - FILES))


class _Requests(h11.Connection):
    """Refuses what h11 lets pass.

    A body of two lengths (a request may be hidden behind one of them), and one in tiny pieces, each of which
    costs as much as a large one: half a second for 100 kB.
    """

    _pieces, _bytes = 0, 0  # of the present body

    def next_event(self) -> Any:
        """See h11."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                raise h11.RemoteProtocolError("two lengths of one body")
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > PIECES and self._bytes < PIECE * self._pieces:
                raise h11.RemoteProtocolError("a body in tiny pieces")
        return event


class Connection(H11Protocol):
    """uvicorn's connection, and since when it keeps the server waiting."""

    since = 0.0  # its head, or its next one, has been awaited from here
    _unsent, _moved = 0, 0.0  # bytes that it has not taken, and when they last became fewer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self.since = time.monotonic()
        self.conn = _Requests(h11.SERVER)

    def on_response_complete(self) -> None:
        """See uvicorn."""
        self.since = time.monotonic()
        super().on_response_complete()

    @property
    def rank(self) -> int:
        """Who goes first: who never asked, who was answered, who is still asking; 3 is being answered."""
        if self.cycle is None:
            return 0
        if self.cycle.response_complete:
            return 1
        return 2 if self.cycle.more_body and not self.cycle.response_started else 3

    def overdue(self, settings: Settings, now: float) -> bool:
        """Whether it has kept the server waiting for too long."""
        if self.rank < 2 and now - self.since > settings.head_seconds:
            return True
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent:
            self._moved = now
        self._moved = self._moved or now
        self._unsent = unsent
        return now - self._moved > settings.stalled_seconds


class Door:
    """Lets connections in, and closes those that keep the server waiting.

    Args:
        settings: of the server.
        make: makes a connection's protocol.
        connections: those there are; a connection adds and removes itself.
    """

    def __init__(
        self,
        settings: Settings,
        make: Callable[[], Connection],
        connections: Collection[Any],
    ) -> None:
        self._settings, self._make, self._connections = settings, make, connections
        self.limit = connection_limit(settings)
        self._told = -SILENCE

    async def accept(self, listener: socket.socket) -> None:
        """Let connections in, for as long as this runs."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                came, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in SCARCE:
                    self._make_room(os.strerror(error.errno))
                    await asyncio.sleep(PAUSE)
                continue  # else it left before it came in
            if len(self._connections) >= self.limit and not self._make_room("too many"):
                came.close()
                continue
            try:
                await loop.connect_accepted_socket(self._make, came)
            except OSError:
                came.close()

    def sweep(self) -> None:
        """Close connections that have kept the server waiting for too long."""
        now = time.monotonic()
        for connection in list(self._connections):
            if connection.overdue(self._settings, now):
                connection.transport.abort()

    def _make_room(self, why: str) -> bool:
        """Close the connection that has waited longest of those that are not being answered, if any."""
        if time.monotonic() - self._told > SILENCE:
            self._told = time.monotonic()
            log.warning(
                "%d connections and no room for another (%s): idle ones are closed; told once a minute",
                len(self._connections),
                why,
            )
        waiting = [
            each for each in self._connections if each.rank < 3 and not each.transport.is_closing()
        ]
        if not waiting:
            return False
        min(waiting, key=lambda each: (each.rank, each.since)).transport.abort()
        return True
