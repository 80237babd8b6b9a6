"""How far a piece of work is: what every long step tells whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # name, done, total


def within(name: str, progress: Progress | None) -> Callable[[int, int], None] | None:
    """The same for one named step: called with done and total."""
    return (lambda done, total: progress(name, done, total)) if progress else None
