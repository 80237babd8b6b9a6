"""Drop rows whose text and media equal an earlier row's, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

from modalign.data.curation.inputs import Row
from modalign.data.curation.media import Need
from modalign.data.curation.operators.base import Judge, Operator, Workplace
from modalign.data.curation.store import Drop


class ExactDuplicates(Operator):
    """Keep the first of equal rows: same turns, same text, same media content in the same places.

    Media are compared by content, not by name. Ids, skills and other columns do not count.
    """

    name: ClassVar[str] = "exact_duplicates"

    @property
    def needs(self) -> Need:
        """Media are compared by content."""
        return "content"

    def start(self, place: Workplace) -> Judge:
        """Begin."""
        return _Judge(place)


class _Judge(Judge):
    def __init__(self, place: Workplace) -> None:
        self._place, self._table = place, f"{place.prefix}_seen"
        place.store.execute(
            f"CREATE TABLE IF NOT EXISTS {self._table} (digest BLOB PRIMARY KEY, position INTEGER)"
            " WITHOUT ROWID"
        )

    def judge(self, rows: Sequence[Row]) -> Iterator[Drop]:
        store = self._place.store
        for row in rows:
            digest = content_digest(row)
            added = store.execute(
                f"INSERT OR IGNORE INTO {self._table} VALUES (?, ?)", (digest, row.position)
            )
            if added.rowcount:
                continue
            (first,) = store.execute(
                f"SELECT position FROM {self._table} WHERE digest = ?", (digest,)
            ).fetchone()
            yield Drop(row.position, f"equal to {self._place.name_of(first)}")


def content_digest(row: Row) -> bytes:
    """Hash a row's turns, with their text and the content of their media, to 128 bits."""
    digest = hashlib.blake2b(digest_size=16)
    media = iter(row.media)
    for message in row.record.messages:
        digest.update(b"\1" + message.role.encode())
        for part in message.parts:
            if isinstance(part, str):
                text = part.encode()
                digest.update(b"\2" + len(text).to_bytes(8, "big") + text)
            else:
                digest.update(b"\3" + part.modality.encode() + next(media).content)
    return digest.digest()


def media_salt(row: Row) -> int:
    """Hash the content of a row's media, in order, to 64 bits; 0 without media."""
    if not row.media:
        return 0
    contents = b"".join(facts.content for facts in row.media)
    return int.from_bytes(hashlib.blake2b(contents, digest_size=8).digest(), "big")
