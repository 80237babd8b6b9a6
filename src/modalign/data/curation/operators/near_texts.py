"""Drop rows whose text is close to an earlier kept row's: MinHash proposes, exact Jaccard decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from modalign.data.curation.inputs import Row
from modalign.data.curation.media import Need
from modalign.data.curation.minhash import MinHasher, choose_bands, jaccard, normalise, shingles
from modalign.data.curation.neighbours import Neighbours
from modalign.data.curation.operators.base import Judge, Operator, Workplace
from modalign.data.curation.operators.exact_duplicates import media_salt
from modalign.data.curation.store import Drop


class NearTexts(Operator):
    """Keep the first of rows whose texts have a Jaccard similarity of at least `threshold`.

    Attributes:
        threshold: minimum similarity of the sets of character n-grams of the normalised texts.
        characters: n.
        media: `same`: only rows with equal media are compared (one question about a thousand images is
            not a duplicate); `any`: only text counts.
        recall: the probability that a pair at the threshold becomes a candidate; higher above it.
        seed: of the hash functions.
    """

    name: ClassVar[str] = "near_texts"
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    threshold: float = Field(default=0.8, ge=0.1, le=1)
    characters: int = Field(default=5, ge=1, le=32)
    media: Literal["same", "any"] = "same"
    recall: float = Field(default=0.98, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @property
    def needs(self) -> Need | None:
        """Media are compared by content."""
        return "content" if self.media == "same" else None

    @property
    def waits(self) -> bool:
        """Rows are decided in order, at the end."""
        return True

    def start(self, place: Workplace) -> Judge:
        """Begin."""
        return NearTextsJudge(self, place)


class NearTextsJudge(Judge):
    """A judge that keeps band keys and normalised texts on disk."""

    def __init__(self, settings: NearTexts, place: Workplace) -> None:
        self._settings, self._place = settings, place
        bands, rows = choose_bands(settings.threshold, settings.recall)
        self._hasher = MinHasher(settings.characters, bands, rows, settings.seed)
        self.neighbours = Neighbours(place.store, place.prefix, bands)
        self._texts = f"{place.prefix}_texts"
        place.store.execute(
            f"CREATE TABLE IF NOT EXISTS {self._texts} (position INTEGER PRIMARY KEY,"
            " size INTEGER, text TEXT)"
        )

    def judge(self, rows: Sequence[Row]) -> Iterator[Drop]:
        """Add the rows that have a text; none is dropped yet."""
        texts = [(row, text) for row in rows if (text := normalise(row.text))]
        if not texts:
            return
        same = self._settings.media == "same"
        salts = [media_salt(row) if same else 0 for row, _ in texts]
        keys = self._hasher.keys([text for _, text in texts], np.array(salts, dtype=np.uint64))
        self.neighbours.add(np.array([row.position for row, _ in texts]), keys)
        n = self._settings.characters
        self._place.store.executemany(
            f"INSERT OR REPLACE INTO {self._texts} VALUES (?, ?, ?)",
            ((row.position, len(shingles(text, n)), text) for row, text in texts),
        )
        yield from ()

    def finish(self) -> Iterator[Drop]:
        """Drop rows near an earlier kept row."""
        return self.neighbours.drops(self._near)

    def _near(self, position: int, candidates: Sequence[int]) -> str | None:
        if not candidates:
            return None
        n, threshold = self._settings.characters, self._settings.threshold
        size, text = self._text(position)
        own = shingles(text, n)
        for candidate in candidates:
            other_size, other = self._text(candidate)
            if min(size, other_size) < threshold * max(size, other_size):
                continue  # the ratio of the set sizes bounds the similarity
            similarity = jaccard(own, shingles(other, n))
            if similarity >= threshold:
                return f"Jaccard {similarity:.3f} with {self._place.name_of(candidate)}"
        return None

    def _text(self, position: int) -> tuple[int, str]:
        found: tuple[int, str] = self._place.store.execute(
            f"SELECT size, text FROM {self._texts} WHERE position = ?", (position,)
        ).fetchone()
        return found
