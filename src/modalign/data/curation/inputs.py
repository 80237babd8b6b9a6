"""Inputs of a curation: files with their hashes, and their rows in batches of bounded size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from modalign.data.curation.store import place_of, position_of
from modalign.data.readers import locate, open_rows
from modalign.data.readers.result import Kind, Problem, RowError
from modalign.data.readers.rows import Context, build_record
from modalign.data.records import Record, Source

BATCH_ROWS = 2048
BATCH_BYTES = 32 * 2**20  # text and media held in rows, per batch
CHUNK = 2**20

Dropped = Callable[[int, int], Container[int]]
"""Returns the positions to leave out within a range, both ends included."""


Of = Literal["text", "question", "answer"]
_ROLES: dict[Of, tuple[str, ...]] = {
    "text": ("user", "assistant"),
    "question": ("user",),
    "answer": ("assistant",),
}


def said(record: Record, of: Of) -> str:
    """Return a record's turns, one per line: of user and assistant, of the user, or of the assistant."""
    return "\n".join(m.text for m in record.messages if m.role in _ROLES[of]).strip()


@dataclass(frozen=True, slots=True)
class MediumFacts:
    """What is known about one medium.

    Attributes:
        content: sha256 of its bytes.
        width, height: of an opened image, after rotation.
        phash: 64-bit perceptual hash; None for other media and for single-colour images, for which it is
            meaningless.
        miniature: the image's mean colours in 8 x 8 cells, RGB, if it has a hash.
        fault: kind and message, if it cannot be read.
    """

    content: bytes
    width: int | None = None
    height: int | None = None
    phash: int | None = None
    miniature: bytes | None = None
    fault: tuple[Kind, str] | None = None

    @property
    def opened(self) -> bool:
        """Whether it was decoded."""
        return self.width is not None or self.fault is not None


@dataclass(slots=True)
class Row:
    """One row on its way through the operators.

    Attributes:
        position: its place in the inputs (`store.position_of`).
        record: the record made from it.
        fields: as in the file.
        context: the context of its file.
        media: what is known about its media, if an operator needs it; in reading order.
    """

    position: int
    record: Record
    fields: dict[str, Any]
    context: Context
    media: list[MediumFacts] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The turns of user and assistant, one per line."""
        return said(self.record, "text")

    @property
    def question(self) -> str:
        """The user's turns."""
        return said(self.record, "question")

    @property
    def answer(self) -> str:
        """The assistant's turns."""
        return said(self.record, "answer")


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that could not be read."""

    position: int
    problem: Problem


@dataclass
class Batch:
    """Consecutive rows: readable ones, broken ones, and their range."""

    rows: list[Row] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class Input:
    """A data set as given, and its contents when the work began.

    Attributes:
        path: as given; a folder written by `save_to_disk` may be followed by `:split`.
        index: its place among the inputs.
    """

    path: str
    index: int

    @property
    def _file(self) -> Path:
        return locate(self.path)[0]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the content; for a folder, of all its files with their names."""
        return hash_path(self._file)

    def lines(self) -> int:
        """Estimate the number of rows: the lines of a text file, else 0."""
        if self._file.suffix.lower() not in {".jsonl", ".ndjson", ".csv", ".tsv"}:
            return 0
        with self._file.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(CHUNK), b""))

    def stamp(self) -> list[tuple[str, int, int]]:
        """Names, sizes and times of its files, which change when someone writes to them."""
        stats = ((str(file), file.stat()) for file in _files(self._file))
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def hash_path(path: Path) -> str:
    """Return the sha256 of a file, or of all files of a folder with their names."""
    if not path.is_dir():
        return _hash_file(path).hexdigest()
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        digest.update(_hash_file(file).digest())
    return digest.hexdigest()


def batches(
    item: Input,
    *,
    media_root: str | Path | None,
    modalities: Sequence[str],
    columns: Mapping[str, str] | None = None,
    dropped: Dropped = lambda first, last: (),
    after: int = -1,
) -> Iterator[Batch]:
    """Read a data set in batches.

    Args:
        item: the data set.
        media_root: the base folder of relative media paths (default: the data's own).
        modalities: the modalities whose columns hold media.
        columns: column that is read -> its name in the data set.
        dropped: rows to leave out.
        after: rows up to this position are skipped.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    rows, context = open_rows(
        item.path, media_root=media_root, modalities=modalities, columns=columns
    )
    pending: list[tuple[int, dict[str, Any] | RowError]] = []
    size = 0
    for number, fields in rows:
        position = position_of(item.index, number)
        if position <= after:
            continue
        pending.append((position, fields))
        size += _weight(fields)
        if len(pending) == BATCH_ROWS or size >= BATCH_BYTES:
            yield _batch(pending, context, dropped)
            pending, size = [], 0
    if pending:
        yield _batch(pending, context, dropped)


def _batch(
    pending: list[tuple[int, dict[str, Any] | RowError]],
    context: Context,
    dropped: Dropped,
) -> Batch:
    batch = Batch(first=pending[0][0], last=pending[-1][0])
    gone = dropped(batch.first, batch.last)
    for position, fields in pending:
        if position in gone:
            continue
        _, number = place_of(position)
        try:
            if isinstance(fields, RowError):
                raise fields
            record = build_record(fields, context, number)
        except RowError as error:
            problem = Problem(Source(context.file, number), error.kind, str(error))
            batch.broken.append(Broken(position, problem))
            continue
        batch.rows.append(Row(position, record, fields, context))
    return batch


def _weight(fields: Any) -> int:
    if isinstance(fields, dict):
        return sum(map(_weight, fields.values()))
    if isinstance(fields, list):
        return sum(map(_weight, fields))
    data = getattr(fields, "data", fields)  # a medium made from a member of a tar archive
    return len(data) if isinstance(data, str | bytes) else 8


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file())


def _hash_file(path: Path) -> Any:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
