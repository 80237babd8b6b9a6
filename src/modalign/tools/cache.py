"""The cache of tools' results: each tool processes each medium once, for all methods, seeds and runs.

It is one SQLite file. A result's key is the hash of the tool's fingerprint, its arguments and the medium's
content (and the medium's annotations, if the tool reads them). The seconds of the call are stored with it: a
comparison that finds everything in the cache charges the same cost as the one that did the work.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modalign.cache import in_use
from modalign.data.records import Media
from modalign.errors import DataError
from modalign.tools.base import Tool, json_hash
from modalign.tools.guard import CallOutcome

FILE = "tools-1.sqlite"  # the number is the format version
WAIT_SECONDS = 60.0  # wait for another process that is writing
_TABLES = """
CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, tool TEXT, outcome TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, hash TEXT) WITHOUT ROWID;
"""


class ResultCache:
    """Outcomes by key; safe for several processes, and across a fork.

    Args:
        folder: folder of the file, created if needed; None: in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._open: tuple[int, sqlite3.Connection] | None = None
        self._hashes: dict[Media, str] = {}
        self._fingerprints: dict[Tool, str] = {}

    def key(self, tool: Tool, arguments: dict[str, Any], medium: Media) -> str:
        """Return the key of a call's outcome."""
        if tool not in self._fingerprints:
            self._fingerprints[tool] = tool.fingerprint(self.file_hash)
        parts = [self._fingerprints[tool], arguments, medium.modality, self.content(medium)]
        if tool.reads_annotations:
            parts.append(medium.annotations)
        return json_hash(parts)

    def content(self, medium: Media) -> str:
        """Return the content hash of a medium, computed once.

        Raises:
            DataError: its file cannot be read.
        """
        known = self._hashes.get(medium)
        if known is None:
            try:
                known = medium.content_hash()
            except OSError as error:
                raise DataError(f"{medium.label} cannot be read ({error.strerror})") from None
            self._hashes[medium] = known
        return known

    def get(self, key: str) -> CallOutcome | None:
        """Return a cached outcome, or None."""
        found = self._database.execute("SELECT outcome FROM results WHERE key = ?", (key,))
        row = found.fetchone()
        return CallOutcome(**json.loads(row[0])) if row else None

    def put(self, key: str, tool: str, outcome: CallOutcome) -> None:
        """Store an outcome with the next :meth:`commit`."""
        text = json.dumps(asdict(outcome))
        self._database.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (key, tool, text))

    def commit(self) -> None:
        """Write stored outcomes and release the file to other writers."""
        self._database.commit()

    def file_hash(self, path: Path) -> str:
        """Return the sha256 of a file; one with known path, size and time is not read again."""
        state = path.stat()
        known = (str(path.resolve()), state.st_size, state.st_mtime_ns)
        row = self._database.execute(
            "SELECT hash FROM files WHERE path = ? AND size = ? AND modified = ?", known
        ).fetchone()
        if row:
            return str(row[0])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (*known, digest))
        self.commit()
        return digest

    @property
    def _database(self) -> sqlite3.Connection:
        if self._open is None or self._open[0] != os.getpid():
            self._open = (os.getpid(), self._connect())
        return self._open[1]

    def _connect(self) -> sqlite3.Connection:
        if self._folder is None:
            database = sqlite3.connect(":memory:", check_same_thread=False)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            in_use(self._folder)
            path = self._folder / FILE
            database = sqlite3.connect(path, timeout=WAIT_SECONDS, check_same_thread=False)
        try:
            database.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self._folder} contains a damaged {FILE} ({error}): delete it"
            ) from None
        return database
