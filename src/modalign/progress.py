"""Progress callbacks of long steps."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # name, done, total
SCORING = "scoring"  # the stage of a job after its training, which is charged to nobody


def within(name: str, progress: Progress | None) -> Callable[[int, int], None] | None:
    """Return a callback for one named step, called with done and total."""
    return (lambda done, total: progress(name, done, total)) if progress else None
