"""Cache replies on disk by the content of their request, so that paid requests are not repeated.

It is one SQLite file, so several threads and processes may write, an interrupted write is rolled back, and a
million replies need no memory. The key is a hash; neither the request nor the API key is stored.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

from modalign.errors import DataError

BUSY_SECONDS = 60.0


def request_key(*parts: Any) -> str:
    """Hash a request's content, independent of the order of its fields."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class ReplyCache:
    """Responses by key.

    Args:
        path: of the SQLite file, created if missing.

    Raises:
        DataError: the file is not such a cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, response TEXT NOT NULL)"
                " WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            raise DataError(
                f"{path}: cannot be used as a cache of replies ({error}); choose another file, or"
                " remove it"
            ) from None

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the response of a key."""
        with self._lock:
            row = self._database.execute(
                "SELECT response FROM replies WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, response: dict[str, Any]) -> None:
        """Store a response; it is on disk when this returns."""
        text = json.dumps(response, separators=(",", ":"))
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, text))

    def __len__(self) -> int:
        """Return the number of replies."""
        with self._lock:
            return int(self._database.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()
