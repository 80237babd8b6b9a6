"""A record: one conversation with its media, where it came from, and what it measures.

Everything a reader understands becomes this; everything behind the readers sees only this.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

MODALITIES = ("image", "audio", "video", "series", "table", "vectors")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record was read: file and 1-based row (for people to find it)."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True, slots=True)
class Media:
    """One signal, by path or by its bytes; nothing is decoded until it is asked for.

    Attributes:
        modality: one of ``MODALITIES``.
        path: of the file; ``file#part`` names a part of it (a row of an array, say) where the modality's
            reader knows such parts.
        data: the encoded bytes instead.
        annotations: structured notes that the data has on this signal (boxes, a scene, a transcript). Only
            tools read them; they are no part of the signal's identity.
    """

    modality: str
    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    annotations: Any = field(default=None, repr=False, hash=False, compare=False)

    def read(self) -> bytes:
        """Return the encoded bytes (a PNG file's, say)."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        return Path(self.path).read_bytes()

    @property
    def label(self) -> str:
        """A short name for messages."""
        return self.path if self.path is not None else f"<{len(self.data or b'')} bytes>"

    def content_hash(self) -> str:
        """sha256 of the encoded bytes: equal content is the same medium, whatever its name.

        A part of a file counts as its whole file's content and the part's name.
        """
        file, mark, part = (self.path or "").rpartition("#")
        if self.data is not None or not mark or os.path.exists(self.path or ""):
            return hashlib.sha256(self.read()).hexdigest()
        whole = _file_hash(file, os.stat(file).st_mtime_ns)
        return hashlib.sha256(f"{whole}#{part}".encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _file_hash(path: str, _changed: int) -> str:
    """sha256 of a file that many media are parts of: read once, not once per part."""
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
        skill: the column of the evaluation table it belongs to, when given.
        group: records with an equal group never fall on both sides of a split
            (default: the content of their media, else their id).
        options: the answers offered, when the question is multiple choice.
        answers: further accepted answers.
        extra: every other field of the row, untouched.
    """

    id: str
    messages: tuple[Message, ...]
    source: Source
    skill: str | None = None
    group: str | None = None
    options: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)

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
