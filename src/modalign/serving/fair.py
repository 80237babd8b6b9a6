"""Whose turn it is, where clients share places: whoever had least is next."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol, TypeVar

HALF_LIFE = 10.0  # seconds after which half of what a client used is forgotten


class BusyError(Exception):
    """No place became free in time."""


def _now() -> float:
    return time.monotonic()


@dataclass(eq=False)
class Place:
    """A place that was asked for.

    Attributes:
        client: whose it is.
        size: of the work: smaller ones go first.
        number: the order of asking.
        began: when it was given, on ``time.monotonic``.
    """

    client: Hashable
    size: int
    number: int
    began: float = 0.0


@dataclass
class _Use:
    """What a client has and had.

    Attributes:
        now: places.
        seconds: of places given back, forgotten by and by.
        at: when that was last written.
    """

    now: int = 0
    seconds: float = 0.0
    at: float = field(default_factory=_now)

    def used(self, now: float) -> float:
        """Seconds that still count."""
        return self.seconds * 0.5 ** ((now - self.at) / HALF_LIFE)


class Asking(Protocol):
    """What waits for a place, or has one."""

    client: Hashable
    number: int  # the order of asking


A = TypeVar("A", bound=Asking)


class Turns:
    """Who is next for a place that has become free.

    First whoever has fewest places now, then whose last turn is longest ago, then who asked first: a newcomer
    waits for nobody's queue.
    """

    def __init__(self) -> None:
        self._numbers = count(1)
        self._last: dict[Hashable, int] = {}  # of clients that wait or have places

    def first(self, waiting: Collection[A], busy: Iterable[Asking]) -> A:
        """Return the one of those that wait (at least one) whose turn it is."""
        places = Counter(each.client for each in busy)
        there = {each.client for each in waiting} | places.keys()
        self._last = {client: at for client, at in self._last.items() if client in there}

        def order(each: A) -> tuple[int, int, int]:
            return places[each.client], self._last.get(each.client, 0), each.number

        return min(waiting, key=order)

    def took(self, client: Hashable) -> None:
        """Note that a client had its turn."""
        self._last[client] = next(self._numbers)


class FairPlaces:
    """A number of places; of one client's requests the smallest is first.

    Args:
        places: how many.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[Place] = []
        self._uses: dict[Hashable, _Use] = {}
        self._numbers = count()
        self._changed = threading.Condition()

    def take(self, client: Hashable, size: int, timeout: float) -> Place:
        """Wait for a place.

        Raises:
            BusyError: none became free within ``timeout`` seconds.
        """
        until = time.monotonic() + timeout
        with self._changed:
            place = Place(client, size, next(self._numbers))
            self._waiting.append(place)
            try:
                while not (self._free and self._first() is place):
                    left = until - time.monotonic()
                    if left <= 0:
                        raise BusyError
                    self._changed.wait(left)
            finally:
                self._waiting.remove(place)
                self._changed.notify_all()
            self._give(place)
            return place

    def take_now(self, client: Hashable, size: int) -> Place | None:
        """A place, where one is free that nobody waits for."""
        with self._changed:
            if not self._free or self._waiting:
                return None
            place = Place(client, size, next(self._numbers))
            self._give(place)
            return place

    @property
    def wanted(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def give_back(self, place: Place) -> None:
        """Free a place."""
        with self._changed:
            now = time.monotonic()
            use = self._uses[place.client]
            use.seconds, use.at = use.used(now) + now - place.began, now
            use.now -= 1
            self._free += 1
            self._uses = {
                client: use for client, use in self._uses.items() if use.now or use.used(now) > 0.01
            }
            self._changed.notify_all()

    def _give(self, place: Place) -> None:
        self._free -= 1
        place.began = time.monotonic()
        self._uses.setdefault(place.client, _Use()).now += 1

    def _first(self) -> Place:
        now = time.monotonic()

        def order(place: Place) -> tuple[int, float, int, int]:
            use = self._uses.get(place.client, _Use())
            return use.now, use.used(now), place.size, place.number

        return min(self._waiting, key=order)
