"""An index: vectors with ids, searched by their cosine; exactly up to 100,000, then by usearch.

A saved index is a folder: ``vectors.npy`` (n, D) float32 rows of length 1, ``ids.jsonl`` with one id a
line, and ``index.json``: what made the vectors. Vectors of another model are never compared.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modalign.differences import differences
from modalign.errors import DataError, UsageError, extra
from modalign.files import write_atomically
from modalign.strict_json import loads, read_object

EXACT = 100_000  # vectors up to which every one is compared
ROWS = 65_536  # vectors compared at once
VECTORS, IDS, ABOUT = "vectors.npy", "ids.jsonl", "index.json"
Vectors = NDArray[np.float32]


class Hit(NamedTuple):
    """An id that was found, and its cosine with the query."""

    id: str
    score: float


@dataclass
class Index:
    """Vectors with ids.

    Attributes:
        made: what made the vectors (hash of the model, pooling, ...); they are only compared with others
            of the same.
        ids: their names.
        vectors: (n, D) float32, each of length 1.
    """

    made: dict[str, Any]
    ids: list[str] = field(default_factory=list)
    vectors: Vectors = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        """Add vectors (n, D), of any length but zero.

        Raises:
            DataError: an id is there already, or a vector is empty, not finite, zero or of another size.
        """
        new = unit_vectors(vectors, ids)
        taken = set(self.ids)
        for name in ids:
            if name in taken:
                raise DataError(f"the id {name!r} is in the index already: make ids unique")
            taken.add(name)
        if len(self) and new.shape[1] != self.vectors.shape[1]:
            raise DataError(_other_size(new.shape[1], self.vectors.shape[1]))
        self.vectors = np.concatenate([self.vectors, new]) if len(self) else new
        self.ids += ids

    def search(
        self, queries: ArrayLike, k: int = 10, *, exact: bool | None = None
    ) -> list[list[Hit]]:
        """Return the k nearest vectors of each query, the nearest first; equal ones in their order here.

        Args:
            queries: (q, D).
            k: at most so many; an index with fewer vectors gives all.
            exact: compare every vector; None: where there are at most 100,000.

        Raises:
            DataError: the index is empty, or a query cannot be compared.
            UsageError: k is not positive, or usearch is needed and missing.
        """
        if k < 1:
            raise UsageError(f"k is {k}: search for at least one")
        if not len(self):
            raise DataError("the index is empty: there is nothing to find")
        asked = unit_vectors(queries)
        if asked.shape[1] != self.vectors.shape[1]:
            raise DataError(_other_size(asked.shape[1], self.vectors.shape[1]))
        near = _exactly if exact or (exact is None and len(self) <= EXACT) else _nearly
        found = near(self.vectors, asked, min(k, len(self)))
        return [
            [Hit(self.ids[place], float(score)) for place, score in zip(*row, strict=True)]
            for row in found
        ]

    def save(self, folder: Path) -> None:
        """Write the folder; an index that it holds is replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        with Writer(folder, self.made, []) as writer:
            writer.add(self.ids, self.vectors)

    @classmethod
    def load(cls, folder: Path, made: Mapping[str, Any] | None = None) -> Index:
        """Read a folder; vectors stay on the disk until they are used.

        Args:
            folder: of :meth:`save` or ``modalign embed``.
            made: what makes the vectors that will be compared with it.

        Raises:
            DataError: it holds no whole index, or one of another model.
        """
        about = _about(folder)
        if not about.get("complete"):
            raise DataError(f"{folder}: the index is not finished; run the command with --resume")
        if made is not None and (changed := differences(about["made"], dict(made))):
            raise DataError(
                f"{folder} was made by another model or in another way ({'; '.join(changed)}): vectors of two "
                "models cannot be compared; embed both with one"
            )
        try:
            ids = [loads(line) for line in (folder / IDS).read_text("utf-8").splitlines()]
            vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: the index cannot be read ({error})") from error
        if vectors.ndim != 2 or len(vectors) != len(ids):
            raise DataError(f"{folder}: {len(ids)} ids, but vectors of shape {vectors.shape}")
        return cls(about["made"], ids, vectors)


class Writer:
    """Append vectors to an index's folder, so that memory does not grow with their number.

    Args:
        folder: an existing folder.
        made: what makes the vectors.
        kept: ids that the folder holds already, from :func:`written`.
    """

    def __init__(self, folder: Path, made: Mapping[str, Any], kept: Sequence[str]) -> None:
        self.folder, self.made, self.count = folder, dict(made), len(kept)
        self._size: int | None = None
        _tell_about(folder, self.made, complete=False)
        if not kept:
            (folder / VECTORS).write_bytes(b"")
            (folder / IDS).write_bytes(b"")
        self._vectors = (folder / VECTORS).open("r+b")
        self._ids = (folder / IDS).open("ab")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._vectors.close()
        self._ids.close()
        if kind is None:
            _tell_about(self.folder, self.made, complete=True)

    def add(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        """Append vectors (n, D), as :meth:`Index.add`; both files are whole afterwards."""
        rows = unit_vectors(vectors, ids)
        self._vectors.seek(0, os.SEEK_END)
        if not self._vectors.tell():
            self._vectors.write(_header(0, rows.shape[1]))
        self._vectors.write(rows.astype("<f4").tobytes())
        self.count += len(ids)
        self._vectors.seek(0)
        self._vectors.write(_header(self.count, rows.shape[1]))
        self._ids.write("".join(f"{json.dumps(name)}\n" for name in ids).encode())
        for file in (self._vectors, self._ids):
            file.flush()
            os.fsync(file.fileno())


def written(folder: Path, made: Mapping[str, Any]) -> list[str]:
    """Return the ids of an unfinished index whose vectors are whole, and cut off what is not."""
    try:
        about, lines = _about(folder), (folder / IDS).read_bytes().splitlines(keepends=True)
        vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    except (DataError, OSError, ValueError):
        return []
    if about["made"] != dict(made) or vectors.ndim != 2:
        return []
    whole = [line for line in lines if line.endswith(b"\n")][: len(vectors)]
    header = _header(len(whole), vectors.shape[1])
    with (folder / VECTORS).open("r+b") as file:
        file.write(header)
        file.truncate(len(header) + 4 * vectors.shape[1] * len(whole))
    os.truncate(folder / IDS, sum(map(len, whole)))
    return [json.loads(line) for line in whole]


def unit_vectors(vectors: ArrayLike, names: Sequence[str] | None = None) -> Vectors:
    """Scale vectors (n, D) to length 1.

    Raises:
        DataError: there are none, or one is not finite or zero; the message names it.
    """
    rows = np.asarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or not rows.shape[1]:
        raise DataError(f"vectors of shape {rows.shape}, not (number, size)")
    if names is not None and len(names) != len(rows):
        raise DataError(f"{len(names)} ids for {len(rows)} vectors")
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        place = int(bad[0])
        name = repr(names[place]) if names is not None else f"number {place + 1}"
        what = "zero" if lengths[place] == 0 else "not finite"
        raise DataError(f"the vector {name} is {what}: it points nowhere and cannot be compared")
    return (rows / lengths[:, None]).astype(np.float32)


Found = Iterable[tuple[Sequence[int], Sequence[float]]]


def _exactly(vectors: Vectors, queries: Vectors, k: int) -> Found:
    """Yield places and cosines of the k nearest of each query."""
    for first in range(0, len(queries), 256):
        part = queries[first : first + 256]
        blocks = [
            part @ np.asarray(vectors[at : at + ROWS]).T for at in range(0, len(vectors), ROWS)
        ]
        for scores in np.concatenate(blocks, axis=1):
            least = np.partition(scores, -k)[-k]
            above, ties = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
            chosen = np.concatenate([above, ties[: k - len(above)]])
            chosen = chosen[np.lexsort((chosen, -scores[chosen]))]
            yield chosen.tolist(), scores[chosen].tolist()


def _nearly(vectors: Vectors, queries: Vectors, k: int) -> Found:
    """The same by a graph of neighbours (usearch's HNSW)."""
    try:
        from usearch.index import Index as Graph
    except ImportError as error:
        raise UsageError(
            f"{len(vectors):,} vectors are searched by usearch, which is not installed: {extra('index')}; or "
            "search exactly (exact=True), which compares every vector"
        ) from error
    graph = Graph(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=32,
                  expansion_add=256, expansion_search=max(256, 4 * k))  # fmt: skip
    graph.add(np.arange(len(vectors)), np.asarray(vectors), threads=1)
    for query in queries:
        matches = graph.search(query, k, threads=1)
        yield matches.keys.tolist(), (1 - matches.distances).tolist()


def _other_size(new: int, old: int) -> str:
    return (
        f"vectors of {new} numbers, but the index holds vectors of {old}: they are of another model"
    )


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = read_object(folder / ABOUT)
    except DataError as error:
        raise DataError(f"{folder} holds no index: {ABOUT} cannot be read ({error})") from error
    if not isinstance(about.get("made"), dict):
        raise DataError(f"{folder / ABOUT} does not describe an index")
    return about


def _tell_about(folder: Path, made: Mapping[str, Any], *, complete: bool) -> None:
    said = {"format": 1, "made": made, "complete": complete}
    write_atomically(folder / ABOUT, json.dumps(said, indent=1) + "\n")


def _header(count: int, size: int) -> bytes:
    """Of a ``.npy`` file; numpy keeps room in it for the rows to grow in number."""
    found = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (count, size)}
    np.lib.format.write_array_header_1_0(found, about)
    return found.getvalue()
