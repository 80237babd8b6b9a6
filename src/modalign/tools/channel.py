"""Lines of JSON to and from a process that may hang or lie: bounded in size, with a deadline."""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any

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
        rest = memoryview(json.dumps(message).encode() + b"\n")
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


def _mapping(line: bytes) -> dict[str, Any]:
    try:
        value = loads(line)
    except ValueError as error:
        raise ChannelError(f"a message that is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ChannelError("a message that is not a mapping")
    return value
