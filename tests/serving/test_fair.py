"""Places that clients share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from modalign.serving import fair
from modalign.serving.fair import BusyError, FairPlaces, Turns


class Queue:
    """Everybody who waits is given a place in turn, and says so."""

    def __init__(self, places: FairPlaces) -> None:
        self.places = places
        self.served: list[tuple[str, int]] = []
        self.threads: list[threading.Thread] = []

    def wait(self, client: str, size: int) -> None:
        before = len(self.places._waiting)

        def work() -> None:
            place = self.places.take(client, size, 30)
            self.served.append((client, size))
            self.places.give_back(place)

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()
        with self.places._changed:
            assert self.places._changed.wait_for(lambda: len(self.places._waiting) > before, 10)

    def all(self) -> list[tuple[str, int]]:
        for thread in self.threads:
            thread.join(30)
        return self.served


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless it is turned, for uses; waits have their own."""
    now = [0.0]
    monkeypatch.setattr(fair, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@contextmanager
def taken(places: FairPlaces, client: str = "nobody") -> Iterator[None]:
    place = places.take(client, 0, 1)
    yield
    places.give_back(place)


def test_the_smallest_of_a_client_goes_first(clock: list[float]) -> None:
    places = FairPlaces(1)
    queue = Queue(places)
    with taken(places):
        for size in (30, 10, 20):
            queue.wait("a", size)
    assert queue.all() == [("a", 10), ("a", 20), ("a", 30)]


def test_a_client_that_used_much_waits_for_others(clock: list[float]) -> None:
    places = FairPlaces(1)
    with taken(places, "greedy"):
        clock[0] += 8
    queue = Queue(places)
    with taken(places):
        for _ in range(3):
            queue.wait("greedy", 1)
        queue.wait("modest", 1000)
    assert queue.all()[0] == ("modest", 1000)


def test_a_client_that_has_a_place_waits_for_others(clock: list[float]) -> None:
    places = FairPlaces(2)
    queue = Queue(places)
    with taken(places, "greedy"), taken(places):
        queue.wait("greedy", 1)
        queue.wait("modest", 1000)
        with places._changed:
            places._free += 1
            places._changed.notify_all()
            assert places._changed.wait_for(lambda: len(places._waiting) < 2, 10)
        assert [place.client for place in places._waiting] in (["greedy"], [])
    assert queue.all()[0] == ("modest", 1000)


def test_what_was_used_is_forgotten(clock: list[float]) -> None:
    places = FairPlaces(1)
    with taken(places, "a"):
        clock[0] += 4
    assert places._uses["a"].used(clock[0]) == 4
    clock[0] += fair.HALF_LIFE
    assert places._uses["a"].used(clock[0]) == 2
    clock[0] += 20 * fair.HALF_LIFE
    with taken(places, "b"):
        pass
    assert not places._uses


def test_who_waits_too_long_is_told() -> None:
    places = FairPlaces(1)
    with taken(places):
        assert places.take_now("a", 0) is None
        with pytest.raises(BusyError):
            places.take("a", 0, 0.01)
        assert not places.wanted
    other = places.take_now("a", 0)
    assert other is not None
    places.give_back(other)


def _served(asked: list[str], places: int, ended: int) -> str:
    """Whose turns come in what order, where the oldest ``ended`` places are given back at a time."""
    turns, waiting, busy, order = Turns(), [], [], ""
    waiting = [SimpleNamespace(client=name, number=number) for number, name in enumerate(asked)]
    while waiting:
        while waiting and len(busy) < places:
            found = turns.first(waiting, busy)
            turns.took(found.client)
            waiting.remove(found)
            busy.append(found)
            order += found.client
        del busy[:ended]
    return order


@pytest.mark.parametrize(
    ("asked", "places", "ended", "order"),
    [
        ("aaaaab", 1, 1, "abaaaa"),
        ("aaaaab", 4, 4, "abaaaa"),
        ("aaaaabbb", 2, 1, "abababaa"),
        ("aaaabbbbcc", 1, 1, "abcabcabab"),
        ("aaaa", 3, 1, "aaaa"),
    ],
)
def test_clients_take_turns(asked: str, places: int, ended: int, order: str) -> None:
    assert _served(list(asked), places, ended) == order


def test_who_has_places_waits_for_who_has_none() -> None:
    turns = Turns()
    asking = [SimpleNamespace(client=name, number=number) for number, name in enumerate("aab")]
    has = [SimpleNamespace(client="b", number=9)]
    assert turns.first(asking, has) is asking[0]
    assert turns.first(asking, [*has, asking[0], asking[1]]) is asking[2]
    assert turns.first(asking, []) is asking[0]
    turns.took("a")
    assert turns.first(asking, []) is asking[2]
    turns.first(asking[2:], [])  # a neither waits nor has a place: forgotten
    assert turns.first(asking, []) is asking[0]
