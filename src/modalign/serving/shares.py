"""What each client may have of the requests that are served at a time: all, until others come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable

RECENT = 60.0  # seconds for which somebody who asked counts as there
REMEMBERED = 1_000  # clients


class Shares:
    """Requests being served, by client.

    Whoever asks alone may have all places. Where others asked in the last minute, a quarter is left to them:
    whoever fills the server does not keep them out.

    Args:
        most: requests at a time, of all.
    """

    def __init__(self, most: int) -> None:
        self._share = most - most // 4
        self._served: Counter[Hashable] = Counter()
        self._asked: dict[Hashable, float] = {}  # when each asked last, the latest at the end

    def free(self, client: Hashable) -> bool:
        """Note that a client asks; whether it may have one more."""
        now = time.monotonic()
        self._asked.pop(client, None)
        self._asked[client] = now
        while len(self._asked) > REMEMBERED:
            del self._asked[next(iter(self._asked))]
        others = any(at > now - RECENT for name, at in self._asked.items() if name != client)
        return not others or self._served[client] < self._share

    def take(self, client: Hashable) -> None:
        """Count a request that is being served."""
        self._served[client] += 1

    def give_back(self, client: Hashable) -> None:
        """Count its end."""
        self._served[client] -= 1
        self._served += Counter()  # without those that have none
