"""Prompts are read in pieces, so that no long one stops the answers that are being given.

Between two steps of the running rows, prompts are read for about as long as ``SECONDS``; how many positions
that is, is measured as they are read. Every second piece goes to the prompt that came first, every other to the
one of which least was read, so that a short prompt waits for no long one and a long one is never starved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from modalign.serving.growing import Growing
from modalign.serving.prefixes import PAGE, Part, Prefixes, content_key
from modalign.serving.requests import Prompt
from modalign.serving.rows import Row
from modalign.serving.runners import Memory, Prefilled, Runner
from modalign.serving.sampling import Likely
from modalign.serving.slots import KeysValues

if TYPE_CHECKING:
    from modalign.serving.threads import Threads

log = logging.getLogger(__name__)

SECONDS = 0.3  # of reading between two steps
STEPS = 1.5  # or so many times a step's time, where that is longer
ALONE = 3  # times as many positions while no answer is being given
FIRST, LEAST, MOST = 64, 32, 1024  # positions of a piece
MOST_SCORED = 256  # their logits are all held


class Pace:
    """How many positions are read in about a given time.

    Args:
        most: positions.

    Attributes:
        size: positions of the next piece.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most, self.size = most, FIRST

    def took(self, positions: float, seconds: float, target: float) -> None:
        """Learn from a piece: a small one that was quick says nothing."""
        if positions >= self.size / 2 or seconds > target:
            factor = min(2.0, max(0.25, target / max(seconds, 1e-9)))
            self.size = round(min(self.most, max(LEAST, positions * factor)))


@dataclass(eq=False)
class Reading:
    """Prompts of equal length that are read together.

    Attributes:
        rows: whose they are.
        prompts: what is read: a row's prompt, and what it made if a step of the batch failed (``again``).
        cache: their keys and values so far.
        keys: their positions by content, where prefixes are shared.
        cached: positions that were not computed.
        memories: per row, what in-layer connectors left.
        scores: per row, how likely its prompt's tokens are.
    """

    rows: list[Row]
    prompts: list[Prompt]
    cache: Growing
    keys: list[np.ndarray]
    again: bool = False
    cached: int = 0
    memories: list[Memory] = field(default_factory=list)
    scores: list[list[Likely]] = field(default_factory=list)

    @property
    def scored(self) -> bool:
        """Whether the prompts' tokens get log-probabilities."""
        return self.rows[0].scored and not self.again

    @property
    def computed(self) -> int:
        """Positions that were computed so far."""
        return self.cache.read - self.cached


class Readings:
    """The prompts that are being read.

    Args:
        runner: of the model.
        prefixes: keys and values of earlier prompts.
        threads: numbers of threads, measured.
        whole: why prompts must be read in one piece; empty: they need not.

    Attributes:
        pieces: read so far.
        read: share of a piece that the last one was, by positions or time, whichever is more.
        hits, misses: prompts of which something was known, and nothing.
    """

    def __init__(
        self, runner: Runner, prefixes: Prefixes, threads: Threads, whole: str = ""
    ) -> None:
        self.runner, self.prefixes, self.threads, self.whole = runner, prefixes, threads, whole
        self.shares = runner.shares and not whole
        self.queue: list[Reading] = []
        self.pieces = self.hits = self.misses = 0
        self.read = 0.0
        self._paces = {False: Pace(), True: Pace(MOST_SCORED)}
        self._oldest = False

    @property
    def rows(self) -> list[Row]:
        """The rows whose prompts are being read."""
        return [row for reading in self.queue for row in reading.rows]

    @property
    def scoring(self) -> bool:
        """Whether a scored prompt is among them."""
        return any(reading.scored for reading in self.queue)

    def together(self, length: int, scored: bool) -> int:
        """Return how many prompts of a length fit into one piece."""
        return max(1, self._paces[scored].size // length) if self.runner.groups else 1

    def begin(self, rows: Sequence[Row], prompts: Sequence[Prompt], again: bool = False) -> None:
        """Take prompts of equal length; those of which equally much is known are read together."""
        alike: dict[int, list[tuple[Row, Prompt, np.ndarray]]] = {}
        shared = self.shares and not rows[0].scored
        for row, prompt in zip(rows, prompts, strict=True):
            key = content_key(prompt)
            known = self.prefixes.known(prompt, key) if shared else 0
            alike.setdefault(known, []).append((row, prompt, key))
        for known, members in alike.items():
            its_rows, its_prompts, keys = (list(each) for each in zip(*members, strict=True))
            reading = Reading(its_rows, its_prompts, Growing(len(its_prompts[0].ids)), keys, again)
            reading.scores = [[] for _ in its_rows]
            if known:
                parts = [self.prefixes.get(key, 0, known) for key in keys]
                reading.cache.add(_side_by_side(parts))
                reading.cached = known
            if not shared:
                reading.keys = []
            self.queue.append(reading)

    def next(self) -> Reading | None:
        """Return the prompts of which a piece is read next; none whose clients have all gone."""
        for reading in list(self.queue):
            for row in reading.rows:
                if row.cancelled:
                    row.finish("cancelled")
            if all(row.finished for row in reading.rows):
                self.queue.remove(reading)
        if not self.queue:
            return None
        ahead = [reading for reading in self.queue if not self._follows(reading)]
        self._oldest = not self._oldest
        if self._oldest:
            return ahead[0]
        return min(ahead, key=lambda reading: (reading.scored, reading.computed))

    def advance(self, reading: Reading, share: float, target: float) -> Prefilled | None:
        """Read a piece.

        Args:
            reading: of which prompts.
            share: of a piece that may be read, or how many.
            target: seconds that a whole piece should take.

        Returns:
            What was found, once the prompts have been read to their end.
        """
        self._look_up(reading)
        pace, cache = self._paces[reading.scored], reading.cache
        start, n = cache.read, len(reading.rows)
        stop = self._stop(reading, start + max(1, int(pace.size * share) // n))
        begun, self.read = time.perf_counter(), 1.0
        with self.threads.work("read", (stop - start) * n):
            found = self.runner.prefill(
                reading.prompts,
                cache,
                stop,
                all_logits=reading.scored,
                memories=reading.memories,
            )
            if reading.scored:
                for row, logits, scores in zip(
                    reading.rows, found.logits, reading.scores, strict=True
                ):
                    scores += row.prompt_scores(logits, start)
            elif self.runner.device.type == "cuda":
                torch.cuda.synchronize(self.runner.device)
        self.pieces += 1
        seconds = time.perf_counter() - begun
        self.read = max((stop - start) * n / pace.size, seconds / target)
        if not self.whole:
            long = max(1.0, share)
            pace.took((stop - start) * n / long, seconds / long, target)
        reading.memories = found.memories
        if reading.keys and torch.isfinite(found.logits).all():
            for number, key in enumerate(reading.keys):
                self.keep(key[:stop], partial(cache.part, row=number))
        if stop < cache.length:
            return None
        self.queue.remove(reading)
        if self.shares and not reading.scored:
            self.hits += n * bool(reading.cached)
            self.misses += n * (not reading.cached)
        return found

    def keep(self, key: np.ndarray, part: Part) -> None:
        """Keep what was read or made; a request does not end because that fails."""
        try:
            self.prefixes.keep(key, part)
        except Exception:
            log.exception("keys and values were not kept")

    def drop(self, reading: Reading) -> None:
        """Read no more of some prompts."""
        if reading in self.queue:
            self.queue.remove(reading)

    def _follows(self, reading: Reading) -> bool:
        """Whether what comes next is being read for another prompt, from whose pages it can be taken."""
        if len(reading.keys) != 1 or not self.prefixes.most:
            return False
        key, read = reading.keys[0], reading.cache.read
        place = self.queue.index(reading)
        for number, other in enumerate(self.queue):
            if (other.cache.read, -number) <= (read, -place) or len(other.keys) != 1:
                continue
            here, there = key[: read + PAGE], other.keys[0][: read + PAGE]
            if len(here) < len(key) and np.array_equal(here, there):
                return True
        return False

    def _look_up(self, reading: Reading) -> None:
        """Take over what others have read of the same prompt meanwhile."""
        if len(reading.keys) != 1:
            return
        key, start = reading.keys[0], reading.cache.read
        known = self.prefixes.known(reading.prompts[0], key)
        if known > start:
            reading.cache.add(self.prefixes.get(key, start, known))
            reading.cached += known - start

    def _stop(self, reading: Reading, wanted: int) -> int:
        """Return where a piece ends: at no medium's inside."""
        stop = reading.cache.length if self.whole else min(wanted, reading.cache.length)
        while (moved := max(self.runner.cut(prompt, stop) for prompt in reading.prompts)) > stop:
            stop = moved
        return min(stop, reading.cache.length)


def _side_by_side(known: Sequence[list[KeysValues]]) -> list[KeysValues]:
    """Concatenate single rows' keys and values, (1, H, P, Dh) per layer, into one batch."""
    if len(known) == 1:
        return known[0]
    layers = zip(*known, strict=True)
    return [
        (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
        for layer in layers
    ]
