"""Continuous batching: requests join and leave a running batch, whatever their media and lengths.

One thread runs the model. It first reads a piece of waiting prompts (short ones of equal length together, reusing
what an earlier prompt shares with them), then generates one token for every row, and so on. The continuous
batching of transformers (5.23) takes text only; this one prefills through the model's own forward, media included,
and decodes with explicit masks and positions. Every answer equals the one generated alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modalign.chat_templates import let_through
from modalign.devices import device_named
from modalign.errors import UsageError
from modalign.lengths import declared_length, served_length
from modalign.models.asking import tokenizer_of
from modalign.models.export.gateway import REFERENCE
from modalign.models.open import open_model
from modalign.patches import with_patches
from modalign.serving.fair import Turns
from modalign.serving.one_by_one import answer_alone
from modalign.serving.prefixes import BYTES, Prefixes, content_key
from modalign.serving.prompts import Prompts
from modalign.serving.reading import ALONE, SECONDS, STEPS, Reading, Readings
from modalign.serving.requests import (
    DrainingError,
    EngineState,
    Event,
    Listener,
    Prompt,
    PromptError,
    QueueFullError,
    Sampling,
    Turn,
)
from modalign.serving.rows import Row
from modalign.serving.runners import Prefilled, runner_of
from modalign.serving.sampling import Settled, checked
from modalign.serving.scoring import Teller, Told
from modalign.serving.selftest import why_not_batched, why_not_in_pieces
from modalign.serving.shares import Shares
from modalign.serving.slots import Slots
from modalign.serving.text import Spelling
from modalign.serving.threads import Threads, alone, candidates, small, worthwhile

log = logging.getLogger(__name__)

TOGETHER = 8  # prompts of equal length read at once
STEADY = 0.2  # weight of the newest step's time
CRUMB = 0.25  # of a piece: so little of a turn's share is left for the next turn


def open_engine(
    model: Path | str,
    *,
    device: str = "auto",
    control_tokens: Sequence[str] = (),
    patches: Sequence[Path] = (),
    max_batch: int = 16,
    max_waiting: int = 64,
    max_length: int | None = None,
    threads: int | None = None,
    prefix_bytes: int = BYTES,
) -> LocalEngine:
    """Load a model folder, apply patches, and start an engine.

    On a CPU the number of threads is measured unless ``threads`` gives it; the calling thread and those started
    later use one: see :func:`modalign.serving.threads.alone`.

    Raises:
        UsageError: there is no model, or it cannot be loaded; the message says why.
    """
    if (Path(model) / REFERENCE).is_file():
        raise UsageError(
            f"{model} is a gateway: its language model runs elsewhere; give that server's address with "
            "--backend"
        )
    on_cpu = device_named(device).type == "cpu"
    with alone() if on_cpu else nullcontext() as most:
        loaded, reader = open_model(model, device=device)
        let_through(tokenizer_of(reader), control_tokens)
        patched = with_patches(loaded, tokenizer_of(reader), patches)
        engine = LocalEngine(
            patched,
            reader,
            max_batch=max_batch,
            max_waiting=max_waiting,
            max_length=max_length,
            threads=threads or (candidates(most) if most else None),
            prefix_bytes=prefix_bytes,
        )
        engine.begun.wait()
    return engine


class LocalEngine:
    """The engine of a model in this process; see :class:`modalign.serving.requests.Engine`.

    Args:
        model: in evaluation mode, on its device.
        reader: its processor, tokenizer or tools' reader.
        max_batch: rows that decode together.
        max_waiting: requests that may wait for a row.
        max_length: positions of prompt and answer; None: the model's own limit.
        threads: threads of the model; the fewest worthwhile of several ascending numbers, measured as it works
            (the last if the model cannot be batched); None: unchanged.
        prefix_bytes: most bytes of earlier prompts' keys and values.
    """

    def __init__(
        self,
        model: Any,
        reader: Any,
        *,
        max_batch: int = 16,
        max_waiting: int = 64,
        max_length: int | None = None,
        threads: int | Sequence[int] | None = None,
        prefix_bytes: int = BYTES,
    ) -> None:
        self.model = model
        self.prompts = Prompts(reader)
        self.modalities = self.prompts.modalities
        self.signals: Mapping[str, Mapping[str, Any]] = self.prompts.signals
        self.takes_tools = self.prompts.takes_tools
        self.max_length = served_length(max_length, declared_length(model.config))
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.runner = runner_of(model, self.modalities if self.prompts.has_media else ())
        self.settled = Settled.of(model, self.prompts.tokenizer)
        self.spelling = Spelling(self.prompts.tokenizer)
        self.note = why_not_batched(self.runner, self.prompts)
        whole = "" if self.note else why_not_in_pieces(self.runner, self.prompts)
        if self.note:
            log.warning("requests are answered one by one: %s", self.note)
        elif whole:
            log.warning("prompts are read in one piece, and none is reused: %s", whole)
        given = [threads] if isinstance(threads, int) else threads
        self.threads = Threads(given or [])
        self.prefixes = Prefixes(prefix_bytes)
        self.readings = Readings(self.runner, self.prefixes, self.threads, whole)
        self._step_seconds = 0.0
        self._slots, self._rows = Slots(), list[Row]()
        self._untold: list[tuple[Listener, Event]] = []
        self._waiting: list[Row] = []
        self._turns, self._shares = Turns(), Shares(max_waiting)
        self._changed = threading.Condition()
        self._teller = Teller(self._changed)
        self._draining = self._closed = False
        self.begun = threading.Event()
        self._steps = self._read = self._made = self._cached = 0
        self._thread = threading.Thread(target=self._run, name="modalign-engine", daemon=True)
        self._thread.start()

    def chat_prompt(self, messages: Sequence[Turn], tools: Sequence[Any] | None = None) -> Prompt:
        """Render messages with the chat template, up to the answer; see ``Engine``."""
        return self.prompts.chat(messages, tools)

    def text_prompt(self, text: str | Sequence[int]) -> Prompt:
        """Make a prompt of plain text or token ids; see ``Engine``."""
        return self.prompts.text(text)

    def submit(
        self, prompt: Prompt, sampling: Sampling, listener: Listener, client: str = ""
    ) -> Row:
        """Queue a client's request; the next free row goes to whoever has fewest (:class:`Turns`).

        Raises:
            PromptError: it leaves no room for an answer.
            QueueFullError: too many wait, or of this client too many where others ask.
            DrainingError: the engine is shutting down.
        """
        left = self.max_length - len(prompt.ids)
        if left < min(1, sampling.max_tokens):
            raise PromptError(
                f"the prompt has {len(prompt.ids)} tokens; this model reads {self.max_length}, the answer "
                "included"
            )
        most = min(sampling.max_tokens, left)
        row = Row(
            prompt,
            sampling,
            # A scored prompt is told by a thread of its own.
            listener if self.note or sampling.prompt_logprobs else partial(self._later, listener),
            self.spelling,
            self.settled,
            self.runner.device,
            most,
            alone=bool(self.note),
            client=client,
        )
        with self._changed:
            if self._draining or self._closed:
                raise DrainingError("the server is shutting down")
            if not self._shares.free(client) or len(self._waiting) >= self.max_waiting:
                raise QueueFullError(
                    f"{len(self._waiting)} requests wait already; try again soon", retry_after=1.0
                )
            self._shares.take(client)
            self._waiting.append(row)
            self._changed.notify_all()
        return row

    def state(self) -> EngineState:
        """Return the current state."""
        return EngineState(
            running=len(self._busy()),
            waiting=len(self._waiting),
            draining=self._draining,
            steps=self._steps,
            prompt_tokens=self._read,
            new_tokens=self._made,
            cached_tokens=self._cached,
            media_hits=self.runner.media.hits,
            media_misses=self.runner.media.misses,
            pieces=self.readings.pieces,
            prefix_hits=self.readings.hits,
            prefix_misses=self.readings.misses,
            prefix_evicted=self.prefixes.evicted,
            prefix_pages=len(self.prefixes),
            prefix_bytes=self.prefixes.size,
            threads=self.threads.of("step"),
            reading="whole" if self.note or self.readings.whole else "in pieces",
            reading_note=self.readings.whole,
            max_batch=1 if self.note else self.max_batch,
            batching="one by one" if self.note else "continuous",
            note=self.note,
        )

    def drain(self, timeout: float) -> bool:
        """Stop accepting, finish running requests; return True if all finish within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            while self._busy() or self._waiting:
                left = end - time.monotonic()
                if left <= 0 or self._closed:
                    return False
                self._changed.wait(left)
        return True

    def close(self) -> None:
        """Stop at once and cancel running requests."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=60)

    def _busy(self) -> list[Row]:
        """Rows that are being answered, or whose prompts are being read or told."""
        return [*self._rows, *self.readings.rows, *self._teller.rows]

    def _run(self) -> None:
        turn = self._alone if self.note else self._turn
        with torch.inference_mode():
            try:
                self._set_threads()
            finally:
                self.begun.set()
            while self._wait_for_work():
                # Rows are guarded one by one; whatever else fails must not end the thread.
                self._guarded(self._rows, turn)
                self._guarded(self._rows, self._drop_finished)
        self._teller.close()
        for row in [*self._busy(), *self._waiting]:
            row.finish("cancelled")
        self._tell()
        with self._changed:
            self._rows.clear()
            self.readings.queue.clear()
            self._waiting.clear()
            self._changed.notify_all()

    def _set_threads(self) -> None:
        """Set the thread count, which torch keeps per calling thread."""
        counts = self.threads.counts
        if not counts:
            return
        torch.get_num_threads()  # otherwise this thread would take a count set by another, at its first work
        if len(counts) > 1 and not self.note and small(self.model):
            tried = self.prompts.text("one two three")
            self.threads.begin(worthwhile(self.runner, tried, self.max_batch, counts))
        else:
            self.threads.begin(counts[-1])

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (
                self._rows
                or self.readings.queue
                or self._ready()
                or self._teller.ready
                or self._closed
            ):
                self._changed.wait()
            return not self._closed

    def _turn(self) -> None:
        """Read a piece of the prompts that wait, then one token for every row."""
        while told := self._teller.next():
            told.row.listener = partial(self._later, told.row.listener)
            self._guarded([told.row], partial(self._join, told, 0))
        while group := self._next_group():
            self._guarded(group, partial(self.readings.begin, group, [row.prompt for row in group]))
        self._read_prompts(1 if self._rows else ALONE)
        if self._rows:
            self._step()

    def _read_prompts(self, share: float) -> None:
        """Read prompts for about the time of a piece, or of several."""
        while share > CRUMB and (reading := self.readings.next()):
            before = len(self._rows)
            self._guarded(reading.rows, partial(self._read_piece, reading, share))
            share -= self.readings.read
            self._drop_finished()
            if before == 0 and self._rows:
                share = 0  # who has begun waits for no others

    def _read_piece(self, reading: Reading, share: float) -> None:
        """Read a piece of some prompts; those read to their end begin their answers."""
        target = max(SECONDS, STEPS * self._step_seconds)
        try:
            found = self.readings.advance(reading, share, target)
        except Exception:
            self.readings.drop(reading)
            if len(reading.rows) == 1:
                raise
            for row in reading.rows:  # one of them, or all together, is too much: read each alone
                self._guarded([row], partial(self.readings.begin, [row], [row.prompt]))
            return
        if found is not None:
            for number, row in enumerate(reading.rows):
                self._guarded([row], partial(self._begin, row, reading, found, number))

    def _guarded(self, rows: Sequence[Row], act: Callable[[], None]) -> None:
        """Run ``act``; if it fails, only these requests end, with the reason."""
        try:
            act()
        except Exception as error:
            log.exception("%d requests failed", len(rows))
            for row in list(rows):
                row.finish("error", f"{type(error).__name__}: {error}")

    def _ready(self) -> list[Row]:
        """Waiting requests that can be read: others overtake scored prompts, of which one is read at a time."""
        room = self._teller.room and not self.readings.scoring
        return [row for row in self._waiting if room or not row.scored]

    def _next_group(self) -> list[Row]:
        """Return waiting requests to read together, and drop cancelled ones."""
        with self._changed:
            for row in [row for row in self._waiting if row.cancelled]:
                self._leave_queue(row)
                row.finish("cancelled")
            most = self.max_batch - len(self._rows) - len(self.readings.rows)
            ready = self._ready()
            group: list[Row] = []
            while ready and len(group) < most:
                row = self._turns.first(ready, [*self._busy(), *group])
                if not group:
                    length, scored = len(row.prompt.ids), row.scored
                    most = min(most, TOGETHER, self.readings.together(length, scored))
                elif not (alike := _alike(ready, row.client, group[0])):
                    break  # it begins the next group
                else:
                    row = alike[0]
                self._take_turn(row)
                ready.remove(row)
                group.append(row)
            if not self._waiting:
                self._changed.notify_all()
            return group

    def _take_turn(self, row: Row) -> None:
        self._turns.took(row.client)
        self._leave_queue(row)

    def _leave_queue(self, row: Row) -> None:
        self._waiting.remove(row)
        self._shares.give_back(row.client)

    def _begin(self, row: Row, reading: Reading, found: Prefilled, number: int) -> None:
        """Tell that a row's prompt was read, and go on: at once, or when its scores have been told."""
        row.memory = found.memories[number]
        logits = found.logits[number, -1]
        if row.finished:
            return
        if not reading.again:
            self._read += len(row.prompt.ids)
            self._cached += reading.cached
        if not reading.scored:
            if not reading.again:
                row.start((), reading.cached)
            self._join(Told(row, logits, found.layers), number)
            return
        one = slice(number, number + 1)
        layers = [(keys[one].clone(), values[one].clone()) for keys, values in found.layers]
        told = Told(row, logits.clone(), layers if row.most else [])
        self._teller.tell(told, reading.scores[number], reading.cached)

    def _join(self, told: Told, number: int) -> None:
        """Make a row's first token, and let it join the batch; it is row ``number`` of its layers."""
        row = told.row
        if row.cancelled:
            row.finish("cancelled")
        elif row.most == 0:
            row.finish("length")
        else:
            self._choose([row], told.logits[None])
        if not row.finished:
            self._slots.join(told.layers, number)
            self._rows.append(row)

    def _step(self) -> None:
        """Generate one token for every row."""
        begun = time.perf_counter()
        try:
            last = torch.tensor([row.made[-1] for row in self._rows], device=self.runner.device)
            with self.threads.work("step", len(self._rows)):
                logits = self.runner.step(last, self._slots, [row.memory for row in self._rows])
        except Exception:
            log.exception("a step of %d rows failed: each is read anew", len(self._rows))
            self._slots = Slots()  # a column may be half written
            rows, self._rows = self._rows, []
            for row in rows:  # one of them may be the one that the batch failed for
                longer = replace(row.prompt, ids=(*row.prompt.ids, *row.made))
                self._guarded([row], partial(self.readings.begin, [row], [longer], again=True))
            return
        self._steps += 1
        self._choose(self._rows, logits)
        self._step_seconds += STEADY * (time.perf_counter() - begun - self._step_seconds)

    def _choose(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        if self.settled.suppressed is not None:
            logits[:, self.settled.suppressed] = -torch.inf
        best, likely = (each.tolist() for each in logits.max(dim=-1))
        for number, row in enumerate(rows):
            if not row.cancelled:
                self._guarded(
                    [row], partial(self._take, row, logits[number], best[number], likely[number])
                )

    def _take(self, row: Row, logits: torch.Tensor, best: float, likely: int) -> None:
        checked(best)
        row.take(likely if row.plain else row.choose(logits))
        self._made += 1

    def _later(self, listener: Listener, event: Event) -> None:
        self._untold.append((listener, event))

    def _tell(self) -> None:
        """Deliver a step's events, all rows at once, because every wake-up of another thread costs time."""
        untold, self._untold = self._untold, []
        for left, (listener, event) in zip(reversed(range(len(untold))), untold, strict=True):
            listener(event, more=left > 0)

    def _drop_finished(self) -> None:
        """Remove finished rows; keep their keys and values for prompts with the same prefix."""
        for row in self._rows:
            if row.cancelled:
                row.finish("cancelled")
        self._tell()
        for place in reversed(range(len(self._rows))):
            row = self._rows[place]
            if not row.finished:
                continue
            if place < self._slots.rows:
                self._guarded([row], partial(self._keep, row, place))
                self._slots.leave(place)
            self._rows[place] = self._rows[-1]
            self._rows.pop()
        if not (self._busy() or self._waiting):
            with self._changed:
                self._changed.notify_all()

    def _keep(self, row: Row, place: int) -> None:
        if not self.readings.shares or row.failed:
            return
        key = content_key(row.prompt, row.made)
        self.readings.keep(key[: self._slots.lengths()[place]], partial(self._slots.part, place))

    def _alone(self) -> None:
        """Answer the next waiting request with ``generate``, for a model that cannot be batched."""
        with self._changed:
            row = self._turns.first(self._waiting, self._rows)
            self._take_turn(row)
            self._rows.append(row)
        if not row.cancelled:
            self._read += len(row.prompt.ids)
            self._guarded([row], lambda: answer_alone(self.runner, row))
            self._made += len(row.made)
        row.finish("cancelled" if row.cancelled else "length")


def _alike(rows: Sequence[Row], client: Hashable, first: Row) -> list[Row]:
    """Return a client's rows that can be read together with another."""
    length, scored = len(first.prompt.ids), first.scored
    return [
        row
        for row in rows
        if row.client == client and len(row.prompt.ids) == length and row.scored == scored
    ]
