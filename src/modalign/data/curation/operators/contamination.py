"""Drop rows that contain evaluation data: its media, pictures that look like its own, or its text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from modalign.data.curation.inputs import Input, Row, batches
from modalign.data.curation.media import Need
from modalign.data.curation.minhash import normalise
from modalign.data.curation.operators.base import Judge, Operator, Workplace
from modalign.data.curation.operators.looks import LOOK, compare_looks, is_near, look_of
from modalign.data.curation.store import Drop
from modalign.errors import DataError

WORD = re.compile(r"\w+")


class Contamination(Operator):
    """Drop rows that share media, near-equal pictures or word n-grams with evaluation data.

    A row without media whose text is shorter than an n-gram is dropped if the evaluation data has the
    same text, also without media.

    Attributes:
        against: evaluation data sets.
        media: whether to drop rows with a medium of equal content.
        distance: bits by which the hash of a near-equal image may differ; null: images are not compared.
        tolerance: by which its mean colours may differ, as in `near_images`.
        ngram: words per n-gram (13: Brown et al., 2020, appendix C); null: texts are not compared.
        overlap: the share of a row's n-grams that the evaluation data must have.
    """

    name: ClassVar[str] = "contamination"
    paths: ClassVar[tuple[str, ...]] = ("against",)
    libraries: ClassVar[tuple[str, ...]] = ("imagehash", "pillow", "scipy")

    against: tuple[str, ...] = Field(min_length=1)
    media: bool = True
    distance: int | None = Field(default=4, ge=0, le=15)
    tolerance: int | None = Field(default=24, ge=0, le=255)
    ngram: int | None = Field(default=13, ge=1)
    overlap: float = Field(default=0.5, gt=0, le=1)

    @property
    def needs(self) -> Need | None:
        """Media are opened only for the chosen comparisons."""
        if self.distance is not None:
            return "picture"
        return "content" if self.media else None

    @property
    def hashes_images(self) -> bool:
        """Whether pictures are compared."""
        return self.distance is not None

    def references(self) -> Mapping[str, str]:
        """The evaluation data."""
        return {path: Input(path, 0).fingerprint for path in self.against}

    def start(self, place: Workplace) -> Judge:
        """Read the evaluation data.

        Raises:
            DataError: it has an unreadable row, which could not be searched for.
        """
        return _Judge(self, place)


class _Judge(Judge):
    def __init__(self, settings: Contamination, place: Workplace) -> None:
        self._settings = settings
        self._contents: dict[bytes, str] = {}
        self._names: list[str] = []  # names of the images of `looks`
        looks = [np.empty(0, dtype=LOOK)]
        grams = [np.empty(0, dtype=np.uint64)]
        for index, path in enumerate(settings.against):
            done = 0
            for rows in _evaluation_rows(Input(path, index), settings, place):
                for row in rows:
                    name = str(row.record.source)
                    for facts in row.media:
                        self._contents.setdefault(facts.content, name)
                        if (look := look_of(facts)) is not None:
                            looks.append(look)
                            self._names.append(name)
                found = [np.array(self._grams(row)[1], dtype=np.uint64) for row in rows]
                grams.append(np.unique(np.concatenate(found)))
                done += len(rows)
                place.progress(f"read {path}", done, done)
        self._looks = np.concatenate(looks)
        self._known = np.unique(np.concatenate(grams))

    def judge(self, rows: Sequence[Row]) -> Iterator[Drop]:
        for row in rows:
            reason = self._media_reason(row) or self._text_reason(row)
            if reason is not None:
                yield Drop(row.position, reason)

    def _media_reason(self, row: Row) -> str | None:
        settings = self._settings
        for facts in row.media:
            if settings.media and facts.content in self._contents:
                return f"has a medium of {self._contents[facts.content]}"
            look = look_of(facts)
            if settings.distance is None or look is None:
                continue
            candidates = np.flatnonzero(
                np.bitwise_count(self._looks["phash"] ^ look["phash"]) <= settings.distance
            )
            distances, differences = compare_looks(look, self._looks[candidates])
            near = np.flatnonzero(
                is_near(distances, differences, settings.distance, settings.tolerance)
            )
            if near.size:
                name = self._names[candidates[near[0]]]
                return f"image hash {int(distances[near[0]])} bits from an image of {name}"
        return None

    def _text_reason(self, row: Row) -> str | None:
        texts, grams = self._grams(row)
        if not grams:
            return None
        found = _member(np.array(grams, dtype=np.uint64), self._known)
        share = float(found.mean())
        if share < self._settings.overlap:
            return None
        example = texts[int(found.argmax())]
        return f"{share:.0%} of its n-grams are in the evaluation data: {example!r}"

    def _grams(self, row: Row) -> tuple[list[str], list[int]]:
        n = self._settings.ngram
        if n is None:
            return [], []
        words = WORD.findall(normalise(row.text))
        if len(words) < n:
            whole = bool(words) and next(row.record.media(), None) is None
            texts = [" ".join(words)] if whole else []
        else:
            texts = list(
                dict.fromkeys(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
            )
        return texts, [_hash(text) for text in texts]


def _evaluation_rows(
    item: Input, settings: Contamination, place: Workplace
) -> Iterator[Sequence[Row]]:
    for batch in batches(item, media_root=None, modalities=place.modalities):
        problems = [broken.problem for broken in batch.broken]
        if settings.needs is not None:
            problems += [problem for _, problem in place.media.load(batch.rows, settings.needs)]
        if problems:
            raise DataError(
                f"contamination: the evaluation data has a row that cannot be read: {problems[0]}. "
                "Correct it, because an unreadable row cannot be searched for."
            )
        yield batch.rows


def _member(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    if not ordered.size:
        return np.zeros(len(values), dtype=bool)
    index = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[index] == values


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
