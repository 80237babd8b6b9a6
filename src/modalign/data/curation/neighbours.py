"""Find rows that share a key with an earlier row, the candidates for near duplicates; kept on disk.

Keys arrive in batches and are stored as one blob per band and batch. At the end, each band is sorted in
memory, a range of keys at a time, so that memory does not grow with the data; only keys shared by several
rows (few, in most data) become rows of a table. Then rows are processed in order, and one that is near an
earlier *kept* row is dropped. Hence every dropped row has a kept one near it, whatever lies between.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from modalign.data.curation.store import Drop, Store

SORTED_KEYS = 1 << 16  # keys of one band sorted in memory at a time

Verify = Callable[[int, Sequence[int]], str | None]
"""Why a row is near one of these kept rows, or None."""


class Neighbours:
    """The keys of one operator's rows.

    Args:
        store: the working file.
        prefix: prefix of the tables' names.
        bands: keys per row; keys of different bands are never compared.
    """

    def __init__(self, store: Store, prefix: str, bands: int) -> None:
        self._store, self._bands = store, bands
        self._keys, self._shared = f"{prefix}_keys", f"{prefix}_shared"
        self._kept = f"{prefix}_kept"
        store.execute(
            f"CREATE TABLE IF NOT EXISTS {self._keys} (band INTEGER, positions BLOB, keys BLOB)"
        )
        for table in (self._shared, self._kept):
            order = "position, key" if table == self._shared else "key, position"
            store.execute(
                f"CREATE TABLE IF NOT EXISTS {table} (position INTEGER, key INTEGER,"
                f" PRIMARY KEY ({order})) WITHOUT ROWID"
            )

    def add(self, positions: np.ndarray, keys: np.ndarray) -> None:
        """Add a batch: positions (n,) and keys (n, bands), both int64."""
        blob = positions.astype(np.int64).tobytes()
        columns = np.ascontiguousarray(keys.T.astype(np.int64))
        self._store.executemany(
            f"INSERT INTO {self._keys} VALUES (?, ?, ?)",
            ((band, blob, column.tobytes()) for band, column in enumerate(columns)),
        )

    def drops(self, verify: Verify) -> Iterator[Drop]:
        """Yield the rows that are near an earlier kept one, in order."""
        self._collect_shared()
        rows = self._store.execute(
            f"SELECT position, key FROM {self._shared} ORDER BY position, key"
        )
        for position, group in itertools.groupby(rows, key=lambda row: row[0]):
            keys = [key for _, key in group]
            reason = verify(position, self._candidates(keys))
            if reason is not None:
                yield Drop(position, reason)
                continue
            self._store.executemany(
                f"INSERT OR IGNORE INTO {self._kept} (key, position) VALUES (?, ?)",
                ((key, position) for key in keys),
            )

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield all pairs of rows that share a key, the earlier first; pairs may repeat."""
        self._collect_shared()
        yield from self._store.execute(
            f"SELECT a.position, b.position FROM {self._shared} a JOIN {self._shared} b"
            " ON a.key = b.key AND a.position < b.position"
        )

    def _candidates(self, keys: list[int]) -> list[int]:
        marks = ", ".join("?" * len(keys))
        found = self._store.execute(
            f"SELECT DISTINCT position FROM {self._kept} WHERE key IN ({marks}) ORDER BY position",
            keys,
        )
        return [position for (position,) in found]

    def _collect_shared(self) -> None:
        for table in (self._shared, self._kept):
            self._store.execute(f"DELETE FROM {table}")
        for band in range(self._bands):
            (total,) = self._store.execute(
                f"SELECT coalesce(sum(length(keys)), 0) / 8 FROM {self._keys} WHERE band = ?",
                (band,),
            ).fetchone()
            parts = -(-total // SORTED_KEYS)
            for part in range(parts):
                positions, keys = self._part(band, part, parts)
                twin = _shared(keys)
                self._store.executemany(
                    f"INSERT OR IGNORE INTO {self._shared} (position, key) VALUES (?, ?)",
                    zip(positions[twin].tolist(), keys[twin].tolist(), strict=True),
                )

    def _part(self, band: int, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys of a band in one of equal ranges of a hash, and their positions."""
        positions, keys = [], []
        for blob, key_blob in self._store.execute(
            f"SELECT positions, keys FROM {self._keys} WHERE band = ? ORDER BY rowid", (band,)
        ):
            batch = np.frombuffer(key_blob, dtype=np.int64)
            mine = batch.view(np.uint64) % np.uint64(parts) == part
            keys.append(batch[mine])
            positions.append(np.frombuffer(blob, dtype=np.int64)[mine])
        return np.concatenate(positions), np.concatenate(keys)


def _shared(keys: np.ndarray) -> np.ndarray:
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    equal = ordered[1:] == ordered[:-1]
    twin = np.zeros(len(keys), dtype=bool)
    twin[order[1:][equal]] = True
    twin[order[:-1][equal]] = True
    return np.flatnonzero(twin)
