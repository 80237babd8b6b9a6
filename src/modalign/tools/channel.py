"""Lines of JSON to and from a process that may hang or lie: bounded in size, with a deadline.

Both ends stand here: :class:`Channel` is the asking side's, :func:`own_channel` that of the process which answers.
"""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any, BinaryIO

from modalign.strict_json import loads

_CHUNK = 65536


class ChannelError(Exception):
    """The process broke the rules of the conversation."""


class DeadlineError(ChannelError):
    """The deadline passed."""


class EndedError(ChannelError):
    """The process closed its side: it ended."""


class Channel:
    """One conversation.

    Args:
        incoming: file descriptor to read from; made non-blocking.
        outgoing: file descriptor to write to; made non-blocking.
        limit: bytes of one incoming line.
    """

    def __init__(self, incoming: int, outgoing: int, limit: int) -> None:
        self._incoming, self._outgoing, self._limit = incoming, outgoing, limit
        self._buffer = bytearray()
        for descriptor in (incoming, outgoing):
            os.set_blocking(descriptor, False)

    def receive(self, deadline: float) -> dict[str, Any]:
        """Return the next line's mapping.

        Args:
            deadline: on ``time.monotonic``.

        Raises:
            DeadlineError: it did not come in time.
            EndedError: it will not come.
            ChannelError: it is too long or not a JSON mapping.
        """
        start = 0
        while (end := self._buffer.find(b"\n", start)) < 0:
            start = len(self._buffer)
            if start > self._limit:
                raise ChannelError(f"a message of more than {self._limit:,} bytes")
            self._wait(self._incoming, select.POLLIN, deadline)
            try:
                chunk = os.read(self._incoming, _CHUNK)
            except BlockingIOError:
                continue
            if not chunk:
                raise EndedError("the process ended")
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return _mapping(line)

    def send(self, message: dict[str, Any], deadline: float) -> None:
        """Write a line.

        Raises:
            DeadlineError: it was not taken in time.
            EndedError: nobody reads any more.
        """
        self.send_bytes(json.dumps(message).encode() + b"\n", deadline)

    def receive_into(self, place: bytearray, deadline: float) -> None:
        """Fill a place with the bytes that follow a line.

        Raises:
            DeadlineError: they did not come in time.
            EndedError: they will not come.
        """
        rest = memoryview(place)
        known = min(len(rest), len(self._buffer))
        rest[:known] = self._buffer[:known]
        del self._buffer[:known]
        rest = rest[known:]
        while rest:
            self._wait(self._incoming, select.POLLIN, deadline)
            try:
                count = os.readv(self._incoming, [rest])
            except BlockingIOError:
                continue
            if not count:
                raise EndedError("the process ended")
            rest = rest[count:]

    def send_bytes(self, data: bytes, deadline: float) -> None:
        """Write bytes as they are.

        Raises:
            DeadlineError: they were not taken in time.
            EndedError: nobody reads any more.
        """
        rest = memoryview(data)
        while rest:
            self._wait(self._outgoing, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._outgoing, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise EndedError("the process ended") from None

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise DeadlineError("the time is up")


def own_channel() -> tuple[BinaryIO, BinaryIO]:
    """This process's input and output, for the conversation alone: what is printed goes nowhere."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    return requests, answers


def _mapping(line: bytes) -> dict[str, Any]:
    try:
        value = loads(line)
    except ValueError as error:
        raise ChannelError(f"a message that is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ChannelError("a message that is not a mapping")
    return value
