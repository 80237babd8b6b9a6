"""The working file of a curation: one SQLite file, every batch of rows one transaction.

What an operator has seen, what it dropped and how far its pass has come are written together, so a process
killed at any point continues exactly after its last complete batch. SQLite bounds the memory of its page
cache and is part of Python. Only what needs a lookup by key is a table of rows; the rest is blobs of whole
batches (`neighbours`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

CACHE_KIB = 16 * 1024  # SQLite pages in memory; the rest stays on disk
FILE_BITS = 40  # a position is (file << FILE_BITS) | row: unique, in reading order, one integer

BROKEN = -1  # the operator number of unreadable rows


class Drop(NamedTuple):
    """A row that an operator drops, and why."""

    position: int
    reason: str


def position_of(file: int, row: int) -> int:
    """Encode an input's index and a 1-based row as one integer."""
    return file << FILE_BITS | row


def place_of(position: int) -> tuple[int, int]:
    """Decode a position into file index and row."""
    return position >> FILE_BITS, position & ((1 << FILE_BITS) - 1)


class Store:
    """The working file; `execute` and `executemany` are as in SQLite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in (
            "journal_mode = WAL",
            "synchronous = NORMAL",  # with WAL also consistent after a power cut
            f"cache_size = -{CACHE_KIB}",
            "temp_store = FILE",
            "locking_mode = EXCLUSIVE",
        ):
            self.execute(f"PRAGMA {pragma}")
        self.execute("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT)")
        self.execute(
            "CREATE TABLE IF NOT EXISTS dropped (position INTEGER PRIMARY KEY, operator INTEGER,"
            " reason TEXT, kind TEXT)"
        )
        self.execute("CREATE INDEX IF NOT EXISTS by_operator ON dropped (operator, position)")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._connection.execute(statement, values)

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for many rows."""
        self._connection.executemany(statement, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything written inside, or nothing."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def close(self) -> None:
        """Close the file and keep it."""
        self._connection.close()

    def remove(self) -> None:
        """Close the file and delete it."""
        self.close()
        remove_store(self.path)

    # --- single facts ---------------------------------------------------------------------------

    def get(self, name: str, default: Any = None) -> Any:
        """Return the fact stored under a name."""
        found = self.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if found is None else json.loads(found[0])

    def put(self, name: str, value: Any) -> None:
        """Store a fact (any JSON value) under a name."""
        self.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    # --- dropped rows ---------------------------------------------------------------------------

    def drop(self, operator: int, drops: Iterable[Drop], kind: str | None = None) -> None:
        """Drop rows; the first operator to drop a row keeps it."""
        self.executemany(
            "INSERT OR IGNORE INTO dropped VALUES (?, ?, ?, ?)",
            ((position, operator, reason, kind) for position, reason in drops),
        )

    def dropped_between(self, first: int, last: int) -> dict[int, int]:
        """Return the dropped rows within a range, both ends included, and their operators."""
        found = self.execute(
            "SELECT position, operator FROM dropped WHERE position BETWEEN ? AND ?", (first, last)
        )
        return dict(found.fetchall())

    def count_dropped(self, operator: int) -> int:
        """Count the rows that an operator dropped."""
        query = "SELECT count(*) FROM dropped WHERE operator = ?"
        return int(self.execute(query, (operator,)).fetchone()[0])

    def first_dropped(self, operator: int, count: int) -> list[Drop]:
        """Return the first rows that an operator dropped."""
        query = "SELECT position, reason FROM dropped WHERE operator = ? ORDER BY position LIMIT ?"
        return [Drop(*found) for found in self.execute(query, (operator, count))]


def remove_store(path: Path) -> None:
    """Delete a working file and the journal beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
