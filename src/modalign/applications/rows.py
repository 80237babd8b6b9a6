"""Read an application's own data, in any container that modalign reads, and check it before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from modalign.configuration import explained
from modalign.data.readers import open_rows
from modalign.data.readers.result import RowError
from modalign.data.records import Media, Source
from modalign.errors import DataError, choose, first_line, grouped
from modalign.strict_json import loads

T = TypeVar("T")
Saved = TypeVar("Saved", bound=BaseModel)


class Row(NamedTuple):
    """A row and its place."""

    fields: dict[str, Any]
    source: Source

    def text(self, name: str) -> str:
        """Return a field that must be a text that is not empty.

        Raises:
            ValueError: it is not.
        """
        value = self.fields.get(name)
        if name not in self.fields:
            raise ValueError(f"no column {name!r}; {choose(name, map(str, self.fields))}")
        if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
            raise ValueError(f"{name} is {value!r}, not text with something in it")
        return str(value)


def read_all(path: str | Path, read: Callable[[Row], T]) -> list[T]:
    """Read every row of a file; all unusable ones are reported together.

    Args:
        path: of the file.
        read: turns a row into a value, or raises ValueError saying what is wrong.

    Raises:
        DataError: some rows cannot be used, or there are none.
    """
    found: list[T] = []
    problems: list[tuple[str, str]] = []
    count = 0
    rows, context = open_rows(path)
    for number, fields in rows:
        count, source = number, Source(context.file, number)
        try:
            if isinstance(fields, RowError):
                raise ValueError(str(fields))
            if not isinstance(fields, dict):
                raise ValueError("the row is no object with columns")
            found.append(read(Row(fields, source)))
        except ValueError as error:
            problems.append((str(source), str(error)))
    if problems:
        lines = "\n  ".join(grouped(problems, 10))
        raise DataError(f"{len(problems)} of {count} rows cannot be used:\n  {lines}")
    if not found:
        raise DataError(f"{path}: holds no rows")
    return found


def refuse_repeated(named: Iterable[tuple[str, Source]], what: str) -> None:
    """Refuse names that occur twice.

    Raises:
        DataError: one does; the message names both places.
    """
    first: dict[str, Source] = {}
    for name, source in named:
        if name in first:
            raise DataError(f"{source}: the {what} {name!r} is taken by {first[name]}")
        first[name] = source


def load_saved(path: Path, kind: type[Saved], verb: str) -> Saved:
    """Read what an application's ``train`` wrote.

    Args:
        path: of the JSON file.
        kind: its class.
        verb: the command that writes it, for the error.

    Raises:
        DataError: it is something else; or lacks a field, since a default is not what was learnt, or has others.
    """
    try:
        given = loads(path.read_text(encoding="utf-8"))
        found = kind.model_validate(given)
        if fields := found.model_dump().keys() ^ given.keys():
            raise ValueError(f"{', '.join(sorted(fields))}: missing, or unknown")
    except (OSError, ValueError) as error:
        said = explained(error) if isinstance(error, ValidationError) else first_line(error)
        raise DataError(
            f"{path} was not written by 'modalign app {verb}' ({said}); make it anew with it"
        ) from error
    return found


def load_rows(path: Path) -> np.ndarray:
    """Load an array of rows of numbers.

    Raises:
        DataError: it cannot be read, or is not such an array.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an array ({first_line(error)})") from error
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating):
        raise DataError(f"{path} holds no rows of numbers: {found.dtype} of shape {found.shape}")
    return found


class Relations:
    """Items' relation vectors, a row each of an array's file, as media.

    Args:
        file: of (items, width).
        count: of items.
        order: whose vector each item gets; None: its own.

    Raises:
        DataError: the file is no such array.
    """

    def __init__(self, file: Path, count: int, order: Sequence[int] | None = None) -> None:
        rows = load_rows(file)
        if len(rows) != count:
            raise DataError(
                f"{file} has {len(rows)} rows, but there are {count} items: make it anew"
            )
        self.file, self.count = file, count
        self.order = range(count) if order is None else order

    def of(self, item: int) -> Media:
        """Return an item's vector."""
        return Media("vectors", path=f"{self.file}#{self.order[item]}")

    def shuffled(self, seed: int) -> Relations:
        """Return the same with every item's vector another's."""
        order = np.random.default_rng(seed).permutation(self.count).tolist()
        return Relations(self.file, self.count, order)


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as text ({first_line(error)})") from error
