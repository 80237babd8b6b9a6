"""Answers kept in a run's folder, so that a run taken up again asks nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from modalign.files import write_atomically

T = TypeVar("T")


class Kept:
    """Results by name, each a JSON file.

    Args:
        folder: of the files; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def of(self, name: str, make: Callable[[], T]) -> T:
        """Return what is kept under a name, or make and keep it."""
        if self.folder is None:
            return make()
        path = self.folder / f"{name}.json"
        if path.is_file():
            try:
                found: T = json.loads(path.read_text(encoding="utf-8"))
                return found
            except ValueError:
                path.unlink()  # made anew below
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(made, ensure_ascii=False))
        return made
