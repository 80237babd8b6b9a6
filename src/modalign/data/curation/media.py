"""Facts about media for operators: content, size, perceptual hash; determined once per file.

Opening is lazy: only media of rows that remain when the first operator needs them are opened, in threads
(decoders release the interpreter lock), and the facts are kept in the working file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, cast

import numpy as np
from PIL import Image

from modalign.data.curation.inputs import MediumFacts, Row
from modalign.data.curation.libraries import required
from modalign.data.curation.store import Store
from modalign.data.images import open_image, stored_size
from modalign.data.readers.result import Kind, Problem
from modalign.data.records import Media
from modalign.data.signals import SignalError

Need = Literal["content", "picture"]
WORKERS = 4


class MediaLibrary:
    """Facts about media, by path.

    Args:
        store: the working file, which keeps them.
        hashing: whether opened images get a perceptual hash.
    """

    def __init__(self, store: Store, *, hashing: bool) -> None:
        self._store, self._hashing = store, hashing
        store.execute(
            "CREATE TABLE IF NOT EXISTS media (path TEXT PRIMARY KEY, content BLOB, width INTEGER,"
            " height INTEGER, phash INTEGER, miniature BLOB, kind TEXT, message TEXT) WITHOUT ROWID"
        )

    def load(self, rows: Sequence[Row], need: Need) -> list[tuple[int, Problem]]:
        """Set `row.media` of every row; return rows with an unreadable medium as problems."""
        wanted = {m for row in rows for m in row.record.media()}
        known = {m: facts for m in wanted if (facts := self._kept(m, need)) is not None}
        missing = [m for m in wanted if m not in known]
        if missing:
            with ThreadPoolExecutor(WORKERS) as pool:
                found = list(pool.map(lambda m: _look(m, need, self._hashing), missing))
            known.update(zip(missing, found, strict=True))
            self._keep([(m, known[m]) for m in missing if m.path is not None])
        problems = []
        for row in rows:
            media = list(row.record.media())
            row.media = [known[m] for m in media]
            for medium, facts in zip(media, row.media, strict=True):
                if facts.fault is not None:
                    kind, message = facts.fault
                    text = f"{medium.modality} {medium.label}: {message}"
                    problems.append((row.position, Problem(row.record.source, kind, text)))
                    break
        return problems

    def sizes(self, row: Row) -> list[tuple[int, int]]:
        """Return width and height of a row's images, from opening them earlier or from their header."""
        found = []
        for medium in row.record.media():
            if medium.modality != "image":
                continue
            facts = self._kept(medium, "picture")
            if facts is not None and facts.width is not None and facts.height is not None:
                found.append((facts.width, facts.height))
                continue
            with suppress(SignalError):  # the row was dropped before its image was opened
                found.append(stored_size(medium))
        return found

    def digest(self) -> tuple[int, str]:
        """Return how many media files were read, and a sha256 over all their contents."""
        digest, count = hashlib.sha256(), 0
        for (content,) in self._store.execute("SELECT content FROM media ORDER BY content"):
            digest.update(content)
            count += 1
        return count, digest.hexdigest()

    def _kept(self, medium: Media, need: Need) -> MediumFacts | None:
        if medium.path is None:
            return None
        found = self._store.execute(
            "SELECT content, width, height, phash, miniature, kind, message FROM media"
            " WHERE path = ?",
            (medium.path,),
        ).fetchone()
        if found is None:
            return None
        content, width, height, phash, miniature, kind, message = found
        unsigned = None if phash is None else phash % 2**64
        fault = (kind, message) if kind else None
        facts = MediumFacts(content, width, height, unsigned, miniature, fault)
        pending = need == "picture" and medium.modality == "image" and not facts.opened
        return None if pending else facts

    def _keep(self, found: list[tuple[Media, MediumFacts]]) -> None:
        self._store.executemany(
            "INSERT OR REPLACE INTO media VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    medium.path,
                    facts.content,
                    facts.width,
                    facts.height,
                    None if facts.phash is None else _signed(facts.phash),
                    facts.miniature,
                    *(facts.fault or (None, None)),
                )
                for medium, facts in found
            ),
        )


def _look(medium: Media, need: Need, hashing: bool) -> MediumFacts:
    try:
        content = bytes.fromhex(medium.content_hash())
    except (OSError, ValueError) as error:
        fault: tuple[Kind, str] = ("missing-media", f"cannot be read ({error}): correct the path")
        return MediumFacts(b"", fault=fault)
    if need == "content" or medium.modality != "image":
        return MediumFacts(content)
    try:
        image = open_image(medium)
    except SignalError as error:
        return MediumFacts(content, fault=(error.kind, error.reason))
    if not hashing or (phash := perceptual_hash(image)) is None:
        return MediumFacts(content, *image.size)
    return MediumFacts(content, *image.size, phash, miniature(image))


def perceptual_hash(image: Image.Image) -> int | None:
    """Compute imagehash's 64-bit DCT hash, most significant bit first; None for a single colour."""
    imagehash = required("imagehash", "near_images and contamination by near images")
    low, high = cast("tuple[int, int]", image.convert("L").getextrema())
    if low == high:
        return None
    bits: Any = imagehash.phash(image).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def miniature(image: Image.Image) -> bytes:
    """Compute the mean colours of 8 x 8 cells, row by row."""
    return image.resize((8, 8), Image.Resampling.BOX).tobytes()


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
