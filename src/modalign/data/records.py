"""A record: one conversation with its media, where it came from, and what it measures.

Readers turn every format into records; all later code sees only records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

REFERENCE_KEYS = {
    "path",
    "url",
    "bytes",
    "annotations",
}  # keys of a mapping that represents a medium in a row


def mark(modality: str) -> str:
    """Return a modality's placeholder in texts: ``<image>``."""
    return f"<{modality}>"


def media_columns(modality: str) -> tuple[str, ...]:
    """The column names that hold media of a modality: `image` and `images`, but `series` only."""
    return (modality,) if modality.endswith("s") else (modality, f"{modality}s")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record was read: file and 1-based row (for people to find it)."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True, slots=True)
class Media:
    """One signal, by path or by its bytes; decoded only on demand.

    Attributes:
        modality: one of :func:`modalign.data.modalities.modalities`.
        path: of the file; ``file#part`` names a part of it (a row of an array, say) if the modality's
            reader supports parts.
        data: the encoded bytes instead.
        annotations: structured notes about this signal (boxes, a scene, a transcript). Only tools read them;
            they do not affect the signal's identity.
        source: for messages, the row that a medium without a path was read from.
        decoded: the result of its loader's ``decode``, if another process has already decoded it.
    """

    modality: str
    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    annotations: Any = field(default=None, repr=False, hash=False, compare=False)
    source: Source | None = field(default=None, repr=False, hash=False, compare=False)
    decoded: Any = field(default=None, repr=False, hash=False, compare=False)

    def read(self) -> bytes:
        """Return the encoded bytes (a PNG file's, say)."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        return Path(self.path).read_bytes()

    @property
    def label(self) -> str:
        """A short name for messages: the file, else the row, else the size."""
        if self.path is not None:
            return self.path
        return str(self.source) if self.source else f"<{len(self.data or b'')} bytes>"

    def located(self) -> tuple[Path, str | None]:
        """The file and the part of it: ``features.npy#12`` -> file, "12".

        If the file's own name contains ``#``, there is no part.
        """
        assert self.path is not None
        file, found, part = self.path.rpartition("#")
        if not found or Path(self.path).exists():
            return Path(self.path), None
        return Path(file), part

    def content_hash(self) -> str:
        """sha256 of the encoded bytes: media with equal content are the same, whatever their name.

        For a part of a file, the hash covers the file's content and the part's name.
        """
        if self.data is not None:
            return hashlib.sha256(self.data).hexdigest()
        file, part = self.located()
        about = file.stat()
        whole = _file_hash(str(file), about.st_mtime_ns, about.st_size)
        return whole if part is None else hashlib.sha256(f"{whole}#{part}".encode()).hexdigest()


@lru_cache(maxsize=4096)
def _file_hash(path: str, mtime: int, size: int) -> str:
    """Return the sha256 of a file; a file with many signals is read once."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Part = str | Media
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: text and media in reading order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The turn's text without its media."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation whose assistant turns are supervised (training) or expected (evaluation).

    Attributes:
        id: unique within a data set.
        messages: turns in order; the last one is the assistant's.
        source: file and row.
        skill: the column of the evaluation table it belongs to, if given.
        group: records of the same group never end up on both sides of a split
            (default: the content of their media, else their id).
        options: the possible answers, if the question is multiple choice.
        answers: further accepted answers.
        extra: every other field of the row, unchanged.
        tools: schemas of functions that the model may call, where a program sets them; no reader does.
    """

    id: str
    messages: tuple[Message, ...]
    source: Source
    skill: str | None = None
    group: str | None = None
    options: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)
    tools: tuple[dict[str, Any], ...] = field(default=(), hash=False, compare=False)

    def media(self) -> Iterator[Media]:
        """Every medium in reading order."""
        for message in self.messages:
            for part in message.parts:
                if isinstance(part, Media):
                    yield part

    @property
    def answer(self) -> str:
        """Text of the last turn."""
        return self.messages[-1].text
