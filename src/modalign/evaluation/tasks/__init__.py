"""Evaluation tasks by exact name, for ``modalign eval MODEL DATA --task``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modalign.errors import UsageError, choose
from modalign.evaluation.tasks.anls import Anls
from modalign.evaluation.tasks.base import Task
from modalign.evaluation.tasks.caption import Caption
from modalign.evaluation.tasks.chair import Chair
from modalign.evaluation.tasks.choice import Choice
from modalign.evaluation.tasks.exact import Exact
from modalign.evaluation.tasks.pope import Pope
from modalign.evaluation.tasks.vqa import Vqa
from modalign.evaluation.tasks.wer import Wer

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Exact, Vqa, Anls, Choice, Caption, Wer, Pope, Chair)
}


def make_task(
    name: str, *, seed: int = 0, letters: bool = False, objects: Path | None = None
) -> Task:
    """Create the task with this name.

    Args:
        name: one of ``TASKS``.
        seed: of intervals and of the order of options.
        letters: for ``choice``.
        objects: for ``chair``.

    Raises:
        UsageError: unknown task, an option of another task, or a missing library.
        DataError: the file of objects cannot be used.
    """
    if name not in TASKS:
        raise UsageError(f"no task {name!r}: {choose(name, TASKS)}")
    options: dict[str, Any] = {"seed": seed}
    for option, value, owner in (("letters", letters, "choice"), ("objects", objects, "chair")):
        if value and name != owner:
            raise UsageError(f"--{option} is for task {owner}, not for {name}")
        if value:
            options[option] = value
    return TASKS[name](**options)
