"""Continuous batching: requests join and leave a running batch, whatever their media and lengths.

One thread runs the model. It first reads waiting prompts (those of equal length together, reusing what an
earlier prompt shares with them), then generates one token for every row, and so on. The continuous batching of
transformers (5.23) takes text only; this one prefills through the model's own forward, media included, and
decodes with explicit masks and positions. Every answer equals the one generated alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
from modalign.serving.one_by_one import answer_alone
from modalign.serving.prefixes import Prefixes, content_key
from modalign.serving.prompts import Prompts
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
from modalign.serving.selftest import why_not_batched
from modalign.serving.slots import KeysValues, Slots
from modalign.serving.text import Spelling
from modalign.serving.threads import alone, candidates, worthwhile

log = logging.getLogger(__name__)

TOGETHER = 8  # prompts of equal length read at once
READ_AHEAD = 4096  # prompt positions read between two steps of the running rows


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
            threads=threads or (candidates(patched, most) if most else None),
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
        threads: threads of the model; the fewest worthwhile of several ascending numbers (the last if the model
            cannot be batched); None: unchanged.
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
        if self.note:
            log.warning("requests are answered one by one: %s", self.note)
        self.threads = threads
        self.prefixes = Prefixes()
        self._slots, self._rows = Slots(), list[Row]()
        self._untold: list[tuple[Listener, Event]] = []
        self._waiting: deque[Row] = deque()
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

    def submit(self, prompt: Prompt, sampling: Sampling, listener: Listener) -> Row:
        """Queue a request.

        Raises:
            PromptError: it leaves no room for an answer.
            QueueFullError: too many wait.
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
        )
        with self._changed:
            if self._draining or self._closed:
                raise DrainingError("the server is shutting down")
            if len(self._waiting) >= self.max_waiting:
                raise QueueFullError(
                    f"{len(self._waiting)} requests wait already; try again soon", retry_after=1.0
                )
            self._waiting.append(row)
            self._changed.notify_all()
        return row

    def state(self) -> EngineState:
        """Return the current state."""
        return EngineState(
            running=len(self._rows) + len(self._teller.rows),
            waiting=len(self._waiting),
            draining=self._draining,
            steps=self._steps,
            prompt_tokens=self._read,
            new_tokens=self._made,
            cached_tokens=self._cached,
            media_hits=self.runner.media.hits,
            media_misses=self.runner.media.misses,
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
            while self._rows or self._waiting or self._teller.rows:
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
        for row in [*self._rows, *self._waiting, *self._teller.rows]:
            row.finish("cancelled")
        self._tell()
        with self._changed:
            self._rows.clear()
            self._waiting.clear()
            self._changed.notify_all()

    def _set_threads(self) -> None:
        """Set the thread count, which torch keeps per calling thread."""
        chosen = self.threads
        if chosen is None:
            return
        if not isinstance(chosen, int):
            tried = self.prompts.text("one two three")
            chosen = (
                chosen[-1] if self.note else worthwhile(self.runner, tried, self.max_batch, chosen)
            )
        self.threads = chosen
        torch.get_num_threads()  # otherwise this thread would take a count set by another, at its first work
        torch.set_num_threads(chosen)

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._rows or self._ready() or self._teller.ready or self._closed):
                self._changed.wait()
            return not self._closed

    def _turn(self) -> None:
        """Read waiting prompts while there is room, then one token for every row."""
        while told := self._teller.next():
            told.row.listener = partial(self._later, told.row.listener)
            self._guarded([told.row], partial(self._join, told, 0))
        read = 0
        while read < READ_AHEAD and (group := self._next_group()):
            read += sum(len(row.prompt.ids) for row in group)
            self._guarded(group, partial(self._prefill, group))
            self._drop_finished()
            if group[0].scored and self._rows:
                break
        if self._rows:
            self._step()

    def _guarded(self, rows: Sequence[Row], act: Callable[[], None]) -> None:
        """Run ``act``; if it fails, only these requests end, with the reason."""
        try:
            act()
        except Exception as error:
            log.exception("%d requests failed", len(rows))
            for row in list(rows):
                row.finish("error", f"{type(error).__name__}: {error}")

    def _ready(self) -> list[Row]:
        """Waiting requests that can be read: others overtake scored prompts while too many are being told."""
        return [row for row in self._waiting if self._teller.room or not row.scored]

    def _next_group(self) -> list[Row]:
        """Return waiting requests to read together, and drop cancelled ones."""
        with self._changed:
            for row in [row for row in self._waiting if row.cancelled]:
                self._waiting.remove(row)
                row.finish("cancelled")
            free = self.max_batch - len(self._rows)
            ready = self._ready()
            group: list[Row] = []
            if free > 0 and ready:
                length = len(ready[0].prompt.ids)
                most = min(free, TOGETHER) if self.runner.groups else 1
                if ready[0].scored and self._rows:
                    most = 1  # nobody reads it word by word: those that run come first
                group = [row for row in ready if len(row.prompt.ids) == length][:most]
                for row in group:
                    self._waiting.remove(row)
            if not self._waiting:
                self._changed.notify_all()
            return group

    def _prefill(self, group: Sequence[Row]) -> None:
        """Read prompts, generate each one's first token, and add them to the batch."""
        alike: dict[tuple[int, bool], list[tuple[Row, list[KeysValues]]]] = {}
        for row in group:
            known = self._known(row)
            kind = (known[0][0].shape[2] if known else 0, row.scored)
            alike.setdefault(kind, []).append((row, known))
        for members in alike.values():
            self._read_prompts(members)

    def _known(self, row: Row) -> list[KeysValues]:
        if not self.runner.shares or row.scored:
            return []
        return self.prefixes.longest(row.prompt)

    def _read_prompts(self, members: Sequence[tuple[Row, list[KeysValues]]]) -> None:
        """Read prompts of equal length with equally long known prefixes."""
        rows = [row for row, _ in members]
        scoring = rows[0].scored
        try:
            known = _side_by_side([each for _, each in members])
            found = self.runner.prefill([row.prompt for row in rows], known, all_logits=scoring)
        except Exception:
            if len(rows) == 1:
                raise
            for member in members:  # one of them, or all together, is too much: read each alone
                self._guarded([member[0]], partial(self._read_prompts, [member]))
            return
        cached = known[0][0].shape[2] if known else 0
        for number, row in enumerate(rows):
            self._guarded([row], partial(self._begin, row, found, number, cached))

    def _begin(self, row: Row, found: Prefilled, number: int, cached: int) -> None:
        """Tell that a row's prompt was read, and go on: at once, or when its scores have been told."""
        self._read += len(row.prompt.ids)
        self._cached += cached
        row.memory = found.memories[number]
        logits = found.logits[number]
        if not row.scored:
            row.start((), cached)
            self._join(Told(row, logits[-1], found.layers), number)
            return
        one = slice(number, number + 1)
        layers = [(keys[one].clone(), values[one].clone()) for keys, values in found.layers]
        told = Told(row, logits[-1].clone(), layers if row.most else [])
        self._teller.tell(told, row.prompt_scores(logits), cached)

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
        try:
            last = torch.tensor([row.made[-1] for row in self._rows], device=self.runner.device)
            logits = self.runner.step(last, self._slots, [row.memory for row in self._rows])
        except Exception:
            log.exception("a step of %d rows failed: each is read anew", len(self._rows))
            self._slots = Slots()  # a column may be half written
            rows, self._rows = self._rows, []
            for row in rows:
                self._guarded([row], partial(self._read_anew, row))
            return
        self._steps += 1
        self._choose(self._rows, logits)

    def _read_anew(self, row: Row) -> None:
        """Go on with a row by itself, which may be the one that the batch failed for."""
        found = self.runner.prefill([replace(row.prompt, ids=(*row.prompt.ids, *row.made))])
        row.memory = found.memories[0]
        self._join(Told(row, found.logits[0, -1], found.layers), 0)

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
        if not (self._rows or self._waiting or self._teller.rows):
            with self._changed:
                self._changed.notify_all()

    def _keep(self, row: Row, place: int) -> None:
        if not self.runner.shares or row.failed:
            return
        key = content_key(row.prompt, row.made)
        layers = self._slots.row(place)
        self.prefixes.keep(key[: layers[0][0].shape[2]], layers)

    def _alone(self) -> None:
        """Answer the next waiting request with ``generate``, for a model that cannot be batched."""
        with self._changed:
            row = self._waiting.popleft()
            self._rows.append(row)
        if not row.cancelled:
            self._read += len(row.prompt.ids)
            self._guarded([row], lambda: answer_alone(self.runner, row))
            self._made += len(row.made)
        row.finish("cancelled" if row.cancelled else "length")


def _side_by_side(known: Sequence[list[KeysValues]]) -> list[KeysValues]:
    """Concatenate single rows' keys and values, (1, H, P, Dh) per layer, into one batch."""
    if len(known) == 1:
        return known[0]
    layers = zip(*known, strict=True)
    return [
        (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
        for layer in layers
    ]
