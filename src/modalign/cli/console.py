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
)
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table

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


class Bars:
    """Named progress bars, created on first use: ``bars(name, done, total)``."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        """Set one bar."""
        key = name.partition(" (")[0]  # the rest, such as a loss, changes
        if key not in self.tasks:
            self.tasks[key] = self.progress.add_task(name, total=total)
        self.progress.update(self.tasks[key], description=name, completed=done, total=total)


@contextmanager
def bars(enabled: bool = True) -> Iterator[Bars]:
    """Show progress bars in a context."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, disable=not enabled) as progress:
        yield Bars(progress)


class LiveTable:
    """The live table of a comparison: a row per method with progress, loss and result.

    If the error stream is not a terminal (a log file, CI), a line is printed per event instead.
    """

    def __init__(self) -> None:
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
            title=f"comparing, {seconds // 60:.0f} min {seconds % 60:02.0f} s",
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

    def prepare(self, name: str, done: int, total: int) -> None:
        """Show work before, between and after the jobs."""
        if self.live is None and name != self.doing.partition(":")[0]:
            self._say(name)
        self.doing = f"{name}: {done} of {total}" if done < total else name

    def _say(self, text: str) -> None:
        if self.live is None:
            stderr.print(text, highlight=False, markup=False, soft_wrap=True)

    def decided(self, said: str) -> None:
        """How the comparison stands."""
        self.standing = said
        self._say(said)

    def started(self, job: Job) -> None:
        """Show that a job's process was started."""
        self.doing = ""  # the work before the jobs is done
        self.rows[job] = {"stage": "loading", "fraction": 0.0, "loss": ""}
        self._say(f"{job.name}: started")

    def described(self, job: Job, parts: list[PartCount]) -> None:
        """Show what trains in a job."""
        words = [f"{part.part} {part.trainable:,} of {part.parameters:,}" for part in parts]
        self.rows[job]["trains"] = f"{sum(part.trainable for part in parts):,}"
        self._say(f"{job.name}: trains {', '.join(words)}")

    def advanced(self, progress: JobProgress) -> None:
        """Show the progress of a running job."""
        self.rows[progress.job] |= {
            "stage": progress.stage,
            "fraction": min(progress.fraction, 1.0),
            "loss": progress.loss,
        }

    def finished(self, job: Job, result: JobResult) -> None:
        """Show that a job ended."""
        done = "failed" if result.failure else "done"
        loss = result.val_loss if result.val_loss is not None else ""
        self.rows[job] = self.rows.get(job, {}) | {
            "stage": done,
            "fraction": 1.0,
            "loss": loss,
        }
        detail = f", validation loss {loss:.3f}" if isinstance(loss, float) else ""
        if result.failure:
            detail = f": {result.failure}"
        self._say(f"{job.name}: {done}{detail}")
