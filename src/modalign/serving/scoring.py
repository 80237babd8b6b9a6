"""Prompts that are scored (``echo`` with log-probabilities): a thread of their own writes their tokens' texts.

A prompt of thousands of tokens with twenty alternatives each takes seconds of decoding, for which no other
request should wait: the model's thread takes the numbers alone.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from torch import Tensor

from modalign.serving.rows import Row
from modalign.serving.sampling import Likely
from modalign.serving.slots import KeysValues

MOST = 4  # prompts that wait to be told, or a few more
log = logging.getLogger(__name__)


class Told(NamedTuple):
    """A row whose prompt has been told, and with what it goes on: logits (V,) and its keys and values."""

    row: Row
    logits: Tensor
    layers: list[KeysValues]


class Teller:
    """Tells scored prompts, one after the other.

    Args:
        changed: notified when one has been told.

    Attributes:
        rows: whose prompts are being told, or wait for it.
        ready: those that have been told.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="modalign-scores")
        self.rows: list[Row] = []
        self.ready: deque[Told] = deque()

    def tell(self, told: Told, scores: Sequence[Likely], cached: int) -> None:
        """Take a row; it is ready when its listener has been told of its prompt."""
        self.rows.append(told.row)
        self._pool.submit(self._tell, told, scores, cached)

    def _tell(self, told: Told, scores: Sequence[Likely], cached: int) -> None:
        try:
            told.row.start(scores, cached)
        except Exception as error:
            log.exception("a prompt could not be scored")
            told.row.finish("error", f"{type(error).__name__}: {error}")
        with self._changed:
            self.ready.append(told)
            self._changed.notify_all()

    @property
    def room(self) -> bool:
        """Whether further rows should come: each holds its scores, and keys and values."""
        return len(self.rows) < MOST

    def next(self) -> Told | None:
        """One that is ready, which leaves."""
        if not self.ready:
            return None
        told = self.ready.popleft()
        self.rows.remove(told.row)
        return told

    def close(self) -> None:
        """Stop telling; what is left can be told that it ends."""
        for row in self.rows:
            row.cancel()
        self._pool.shutdown(cancel_futures=True)
