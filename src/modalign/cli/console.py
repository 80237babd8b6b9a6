"""Shared by the verbs: the console, quiet libraries, progress bars, the live table of a comparison."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table

from modalign.numbers import words
from modalign.progress import SCORING
from modalign.visible import visible

if TYPE_CHECKING:
    from modalign.comparison.job import Job, JobResult
    from modalign.comparison.runner import JobProgress
    from modalign.training.trainable import PartCount


class Console(rich.console.Console):
    """Shows controls in texts instead of carrying them out: names and answers come from files and models."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Turn anything into segments; rich's own controls are segments of another kind."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


# Everything for people goes to the error stream: standard output is for results.
stderr = Console(stderr=True)
PIPED_WIDTH = 110
TRAINING = 0.9  # of a job; the rest is scoring
SILENCE = 15.0  # seconds between two lines about a long step, where there is no terminal
_piped = not Console().is_terminal and "COLUMNS" not in os.environ
stdout = Console(width=PIPED_WIDTH if _piped else None)


def print_json(value: Any) -> None:
    """The result as JSON, without colours whatever the environment asks for."""
    print(visible(value if isinstance(value, str) else json.dumps(value, indent=2)))


def quiet_libraries() -> None:
    """Keep transformers' own bars, warnings and questions off the terminal."""
    import transformers.dynamic_module_utils

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Without an answer to wait for, transformers refuses code that it would ask about.
    transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    for name in ("transformers", "peft", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def left_words(seconds: float, share: float) -> str:
    """``34 %, about 2 min left``: how much is done, and what is left at the pace so far."""
    said = f"{share:.0%}"
    if share <= 0 or seconds < 1:
        return said
    left = seconds * (1 - share) / share
    return f"{said}, about {words.seconds(left)} left" if share < 1 else said


class Bars:
    """Named progress bars, made on first mention: ``bars(name, done, total)``.

    Where the error stream is no terminal, a line now and then says how far a long step is.
    """

    def __init__(self, progress: Progress | None, tell: bool = True) -> None:
        self.progress, self.tell = progress, tell
        self.tasks: dict[str, TaskID] = {}
        self.began: dict[str, float] = {}
        self.told = time.monotonic()

    def __call__(self, name: str, done: int, total: int) -> None:
        """Set one bar."""
        key = name.partition(" (")[0]  # what follows, a loss for one, changes as it goes
        if self.progress is None:
            self._line(key, name, done, total)
            return
        if key not in self.tasks:
            self.tasks[key] = self.progress.add_task(name, total=total)
        self.progress.update(self.tasks[key], description=name, completed=done, total=total)

    def _line(self, key: str, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        began = self.began.setdefault(key, now)
        if not self.tell or not total or now - self.told < SILENCE:
            return
        self.told = now
        said = left_words(now - began, done / total)
        stderr.print(f"{name}: {said}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bars(enabled: bool = True) -> Iterator[Bars]:
    """Progress bars for as long as the context lasts."""
    if not stderr.is_terminal:
        yield Bars(None, enabled)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, disable=not enabled) as progress:
        yield Bars(progress)


class LiveTable:
    """The live table of a comparison: a row per method with progress, loss and result.

    Where the error stream is not a terminal (a log file, CI) a line is printed per event instead, with the share
    that is done and the time left, and now and then between events.

    Args:
        expected: trainings that there will be, as far as is known.
    """

    def __init__(self, expected: int = 0) -> None:
        self.expected = expected
        self.jobs_since: float | None = None
        self.training_since: float | None = None
        self.ended = False  # whether any job has
        self.told = time.monotonic()
        self.rows: dict[Job, dict[str, str | float]] = {}
        self.live: Live | None = None
        self.began = time.monotonic()
        self.doing = self.standing = ""

    def __enter__(self) -> LiveTable:
        if stderr.is_terminal:
            self.live = Live(get_renderable=self._table, console=stderr, refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def _table(self) -> Table:
        seconds = time.monotonic() - self.began
        table = Table(
            title=f"comparing, {seconds // 60:.0f} min {seconds % 60:02.0f} s; {self.ahead()}",
            caption="\n".join(filter(None, (self.standing, self.doing))),
            expand=False,
        )
        for header in ("method", "seed", "trains", "stage", "budget", "", "loss"):
            table.add_column(header)
        for job, row in self.rows.items():
            bar = ProgressBar(total=1.0, completed=float(row["fraction"]), width=20)
            loss = row["loss"]
            table.add_row(
                job.method,
                str(job.seed),
                str(row.get("trains", "")),
                str(row["stage"]),
                f"{float(row['fraction']):.0%}",
                bar,
                f"{loss:.3f}" if isinstance(loss, float) else str(loss),
            )
        return table

    def ahead(self) -> str:
        """How much of all trainings is done, and about how long the rest takes."""
        done = sum(
            float(row["fraction"]) * (1.0 if row.get("ended") else TRAINING)
            for row in self.rows.values()
        )
        total = max(self.expected, len(self.rows), 1)
        # Until a job has ended, the pace is that of training: how long loading and scoring take is not known.
        since = self.jobs_since if self.ended else self.training_since
        if not self.ended and any(row["stage"] == SCORING for row in self.rows.values()):
            since = None
        return left_words(0.0 if since is None else time.monotonic() - since, done / total)

    def prepare(self, name: str, done: int, total: int) -> None:
        """Show work before, between and after the jobs."""
        if self.live is None and name != self.doing.partition(":")[0]:
            self._say(name)
        self.doing = f"{name}: {done} of {total}" if done < total else name

    def _say(self, text: str) -> None:
        self.told = time.monotonic()
        if self.live is None:
            stderr.print(text, highlight=False, markup=False, soft_wrap=True)

    def decided(self, said: str) -> None:
        """How the comparison stands."""
        self.standing = said
        self._say(said)

    def started(self, job: Job) -> None:
        """A job's process was started."""
        self.doing = ""  # what came before the jobs is over
        if self.jobs_since is None:
            self.jobs_since = time.monotonic()
        self.rows[job] = {"stage": "loading", "fraction": 0.0, "loss": ""}
        self._say(f"{job.name}: started")

    def described(self, job: Job, parts: list[PartCount]) -> None:
        """Show what trains in a job."""
        words = [f"{part.part} {part.trainable:,} of {part.parameters:,}" for part in parts]
        self.rows[job]["trains"] = f"{sum(part.trainable for part in parts):,}"
        self._say(f"{job.name}: trains {', '.join(words)}")

    def advanced(self, progress: JobProgress) -> None:
        """Show the progress of a running job."""
        if self.training_since is None:
            self.training_since = time.monotonic()
        scoring = progress.stage == SCORING and self.rows[progress.job]["stage"] != SCORING
        self.rows[progress.job] |= {
            "stage": progress.stage,
            "fraction": min(progress.fraction, 1.0),
            "loss": progress.loss,
        }
        if scoring:
            self._say(f"{progress.job.name}: trained, now scored; in all {self.ahead()}")
        elif time.monotonic() - self.told > SILENCE:
            job, share = progress.job, min(progress.fraction, 1.0)
            self._say(f"{job.name}: {progress.stage} {share:.0%}; in all {self.ahead()}")

    def finished(self, job: Job, result: JobResult) -> None:
        """Show that a job ended."""
        self.ended = True
        done = "failed" if result.failure else "done"
        loss = result.val_loss if result.val_loss is not None else ""
        self.rows[job] = self.rows.get(job, {}) | {
            "stage": done,
            "ended": 1.0,
            "fraction": 1.0,
            "loss": loss,
        }
        detail = f", validation loss {loss:.3f}" if isinstance(loss, float) else ""
        if result.failure:
            detail = f": {result.failure}"
        self._say(f"{job.name}: {done}{detail}; in all {self.ahead()}")
