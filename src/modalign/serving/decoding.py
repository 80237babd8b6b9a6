"""Decoding a request's media in processes with limits of time and memory, shared fairly between clients.

Decoders are the part of a server that strangers' bytes reach first, and what a header says of the work may be a
lie. All media of a request are decoded by one process (:mod:`modalign.serving.decoder`), which is ended and
replaced when it takes too long, and whose memory the kernel limits. Places are of two kinds: a request begins
on one of those for quick work. After a moment it moves to one for slow work, or begins there anew when that is
free, so that slow requests wait for one another and nobody else waits for them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from modalign.data.modalities import Amount
from modalign.data.patience import VARIABLE
from modalign.data.records import Media
from modalign.errors import ModalignError, UsageError
from modalign.serving.fair import FairPlaces, Place
from modalign.tools.channel import Channel, ChannelError, DeadlineError
from modalign.tools.process import Child

MODULE = "modalign.serving.decoder"
LINE = 2**20  # bytes of a line from a decoder
QUICK_SECONDS = 0.5  # of CPU time
START_SECONDS = 60.0  # for a decoder to be ready, on a busy machine
WAIT_SECONDS = 60.0  # for a place
SLOW_SHARE = 1 / 3  # of what a request may have: more is no quick work
QUICK, SLOW = 2, 1  # places
# One thread each: a decoder has one core's share, and threads map memory that counts.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
BASE_MEMORY = 512 * 2**20  # bytes
PIXEL_MEMORY = 24  # bytes of a pixel: as stored, converted, turned, laid over white, handed over

Judge = Callable[[list[list[Amount]]], float]
"""Given what each medium amounts to: its share of what is allowed. Raises what the client is told of more."""


class UndecodedError(ModalignError):
    """A medium that was not decoded; ``at`` is its number in the request."""

    def __init__(self, at: int, reason: str) -> None:
        super().__init__(reason)
        self.at = at


@dataclass(frozen=True)
class DecodingLimits:
    """What decoding may take.

    Attributes:
        seconds: for all media of a request.
        memory: bytes of a process.
        held: bytes of decoded media at a time, of all requests.
    """

    seconds: float
    memory: int
    held: int = 2**28


def memory_for(pixels: int) -> int:
    """Bytes of a process that decodes pictures of so many pixels together."""
    return BASE_MEMORY + PIXEL_MEMORY * pixels


@dataclass
class _Held:
    """A place that somebody has, and among which."""

    places: FairPlaces
    place: Place

    def move(self, places: FairPlaces, place: Place) -> None:
        """Have another in its stead."""
        self.places.give_back(self.place)
        self.places, self.place = places, place


class _LaterError(Exception):
    """What the media amount to is no quick work."""


class Decoders:
    """The decoding processes of a server.

    Args:
        limits: of decoding.
    """

    def __init__(self, limits: DecodingLimits) -> None:
        self._limits = limits
        self._quick, self._slow = FairPlaces(QUICK), FairPlaces(SLOW)
        self._room = _Room(limits.held)
        self._idle: list[Child] = []
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Have a process ready before the first request."""
        self._keep(self._started())

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.kill()

    @contextmanager
    def decoded(
        self,
        media: Sequence[Media],
        specs: Mapping[str, Mapping[str, Any]],
        judge: Judge,
        client: Hashable,
    ) -> Iterator[list[Any]]:
        """Give the signals of a request's media, in their order, for as long as they are worked on.

        Args:
            media: of modalities that the decoder knows.
            specs: modality -> its encoder's description; a medium of another is looked at, and its signal None.
            judge: of what they amount to.
            client: whose request it is.

        Raises:
            UndecodedError: a medium cannot be decoded within the limits.
            BusyError: no process became free in time.
            UsageError: a library is missing.
        """
        work = _Work(media, specs, judge, self._room, self._limits)
        try:
            if not self._quickly(work, client):
                self._slowly(work, client)
            yield work.signals
        finally:
            self._room.give_back(work.held)

    def _quickly(self, work: _Work, client: Hashable) -> bool:
        """Do quick work; False where it has to begin anew on a place for slow work.

        It may go on for as long as nobody waits for its place. What counts is the process's own time: on a busy
        machine small pictures take long, too.
        """
        with self._place(work, self._quick, work.size, client) as (child, place):
            began, used = time.monotonic(), child.seconds
            while not work.until(child, min(time.monotonic() + QUICK_SECONDS, self._end(began))):
                if time.monotonic() >= self._end(began):
                    raise self._late(work)
                if child.seconds - used < QUICK_SECONDS:
                    continue
                slow = self._slow.take_now(client, 0)
                if slow is not None:
                    place.move(self._slow, slow)
                    self._to_end(work, child, began)
                    return True
                if self._quick.wanted:
                    return False
        return work.done

    def _slowly(self, work: _Work, client: Hashable) -> None:
        """Do slow work, each client's requests in turn."""
        with self._place(work, self._slow, 0, client) as (child, _):
            self._to_end(work, child, time.monotonic())

    def _to_end(self, work: _Work, child: Child, began: float) -> None:
        if not work.until(child, self._end(began)):
            raise self._late(work)

    def _end(self, began: float) -> float:
        return began + self._limits.seconds

    def _late(self, work: _Work) -> UndecodedError:
        seconds = self._limits.seconds
        return UndecodedError(work.at, f"not decoded within {seconds:g} s: shrink it, or cut it")

    @contextmanager
    def _place(
        self, work: _Work, places: FairPlaces, size: int, client: Hashable
    ) -> Iterator[tuple[Child, _Held]]:
        """Give a process that has the media, on a place; it is replaced where its work did not come to its end."""
        held = _Held(places, places.take(client, size, WAIT_SECONDS))
        child = self._child()
        try:
            work.begin(child, quick=places is self._quick)
            yield child, held
        except _LaterError:
            pass
        finally:
            held.places.give_back(held.place)
            if work.over:
                self._keep(child)
            else:
                child.kill()
                self._keep(self._started())  # ready when it is wanted

    def _child(self) -> Child:
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.alive:
                    return child
        return self._started()

    def _started(self) -> Child:
        limits = self._limits
        arguments = (str(limits.memory), str(math.ceil(limits.seconds)))
        own = {VARIABLE: "inf"}  # the limits of this class hold, and nobody else's
        return Child(MODULE, LINE, arguments, ENVIRONMENT | own)

    def _keep(self, child: Child) -> None:
        with self._lock:
            kept = not self._closed and len(self._idle) < QUICK + SLOW
            if kept:
                self._idle.append(child)
        if not kept:
            child.kill()


class _Work:
    """One request's conversation with a decoder, which can be gone on with after a deadline.

    Attributes:
        size: bytes of the media.
        at: the medium that is worked on.
        over: the conversation came to its end: the decoder can be asked again.
        done: with signals.
        signals: at the end.
        held: bytes of them.
    """

    def __init__(
        self,
        media: Sequence[Media],
        specs: Mapping[str, Mapping[str, Any]],
        judge: Judge,
        room: _Room,
        limits: DecodingLimits,
    ) -> None:
        self._media, self._specs, self._judge = media, specs, judge
        self._room, self._limits = room, limits
        self.size = sum(len(medium.data or b"") for medium in media)
        self.at = self.held = 0
        self.over = self.done = False
        self.signals: list[Any] = []
        self._quick = True

    def begin(self, child: Child, quick: bool) -> None:
        """Hand over the media, to a process that may just have been started."""
        self._quick = quick
        self.over, self.signals = False, []
        until = time.monotonic() + START_SECONDS
        sizes = [{"modality": m.modality, "bytes": len(m.data or b"")} for m in self._media]
        with self._told(child):
            child.channel.send({"media": sizes}, until)
            for medium in self._media:
                child.channel.send_bytes(medium.data or b"", until)
            while "begun" not in child.channel.receive(until):
                pass

    def until(self, child: Child, deadline: float) -> bool:
        """Go on until a time of ``time.monotonic``; whether the work is done.

        Raises:
            UndecodedError: a medium cannot be decoded, or the process ended.
        """
        with self._told(child):
            try:
                while not self.over:
                    self._take(child.channel, child.channel.receive(deadline))
            except DeadlineError:
                return False
        return True

    def _take(self, channel: Channel, message: dict[str, Any]) -> None:
        self.at = min(int(message.get("at", self.at)), len(self._media) - 1)
        if "error" in message:
            self.over = True
            if message.get("kind") == "usage":
                raise UsageError(str(message["error"]))
            raise UndecodedError(self.at, str(message["error"]))
        if "amounts" in message:
            self._allow(channel, [[Amount(**one) for one in each] for each in message["amounts"]])
        if "signals" in message:
            self._receive(channel, message["signals"])
            self.over = self.done = True

    def _allow(self, channel: Channel, amounts: list[list[Amount]]) -> None:
        """Let the decoding begin, if what the media amount to is allowed."""
        until = time.monotonic() + START_SECONDS
        try:
            if self._judge(amounts) > SLOW_SHARE and self._quick:
                raise _LaterError
        except BaseException:
            channel.send({}, until)
            self.over = True
            raise
        channel.send({"specs": dict(self._specs)}, until)

    def _receive(self, channel: Channel, forms: list[dict[str, Any]]) -> None:
        size = sum(int(form["bytes"]) for form in forms)
        if size > self._limits.memory or len(forms) != len(self._media):
            raise ChannelError("signals that cannot be")
        self._room.take(size)
        self.held = size
        for form in forms:
            place = bytearray(int(form["bytes"]))
            channel.receive_into(place, time.monotonic() + START_SECONDS)
            self.signals.append(_signal(form, place))

    @contextmanager
    def _told(self, child: Child) -> Iterator[None]:
        """Say in a message what a process that ended or broke off means."""
        try:
            yield
        except DeadlineError:
            raise
        except ChannelError:
            child.kill()
            ended = f"its decoder ended ({child.cause}): damaged, or too large for this server"
            raise UndecodedError(self.at, ended) from None


def _signal(form: dict[str, Any], data: bytearray) -> Any:
    if form["kind"] == "checked":
        return None
    if form["kind"] == "image":
        width, height = form["size"]
        return Image.frombuffer("RGB", (width, height), data, "raw", "RGB", 0, 1)
    return np.frombuffer(data, form["type"]).reshape(form["shape"])


class _Room:
    """Memory of decoded media, which a request gives back once it has been prepared.

    Args:
        most: bytes; a request that alone takes more is let in when nothing else is there.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until there is room."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + size <= self._most)
            self._held += size

    def give_back(self, size: int) -> None:
        """Give room back."""
        with self._changed:
            self._held -= size
            self._changed.notify_all()
