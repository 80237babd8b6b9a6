"""Drop rows whose images look like an earlier kept row's: hashes find candidates, colours decide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from modalign.data.curation.inputs import Row
from modalign.data.curation.libraries import required
from modalign.data.curation.media import Need
from modalign.data.curation.minhash import GOLDEN, mix, normalise
from modalign.data.curation.neighbours import Neighbours
from modalign.data.curation.operators.base import Judge, Operator, Workplace
from modalign.data.curation.operators.looks import LOOK, compare_looks, is_near, look_of
from modalign.data.curation.store import Drop

BITS = 64


class NearImages(Operator):
    """Keep the first of rows with equally many images that differ only in their encoding.

    That is: the hashes differ in at most `distance` bits, and no cell's mean colour by more than
    `tolerance`.

    If 64 bits are split into `distance` + 1 bands, two hashes that differ in `distance` bits agree in a
    whole band, so the search finds every pair. Single-colour images have no hash and are never near.

    Attributes:
        distance: bits that may differ; resizing and re-encoding change few.
        tolerance: maximum difference of a colour channel, of 255, small after resizing and JPEG; null: only
            hashes count.
        text: `same`: only rows with equal normalised text are compared (ten questions about one image
            are not duplicates); `any`: only images count.
    """

    name: ClassVar[str] = "near_images"
    libraries: ClassVar[tuple[str, ...]] = ("imagehash", "pillow", "scipy")

    distance: int = Field(default=4, ge=0, le=15)
    tolerance: int | None = Field(default=24, ge=0, le=255)
    text: Literal["same", "any"] = "same"

    @property
    def needs(self) -> Need:
        """Images are opened."""
        return "picture"

    @property
    def hashes_images(self) -> bool:
        """Hashes are compared."""
        return True

    @property
    def waits(self) -> bool:
        """Rows are decided in order, at the end."""
        return True

    def start(self, place: Workplace) -> Judge:
        """Begin."""
        required("imagehash", "near_images")
        return _Judge(self, place)


class _Judge(Judge):
    def __init__(self, settings: NearImages, place: Workplace) -> None:
        self._settings, self._place = settings, place
        self._neighbours = Neighbours(place.store, place.prefix, settings.distance + 1)
        self._images = f"{place.prefix}_images"
        place.store.execute(
            f"CREATE TABLE IF NOT EXISTS {self._images} (position INTEGER PRIMARY KEY, looks BLOB)"
        )

    def judge(self, rows: Sequence[Row]) -> Iterator[Drop]:
        seen = [(row, looks) for row in rows if (looks := looks_of(row)) is not None]
        if not seen:
            return
        first = np.array([looks["phash"][0] for _, looks in seen])
        salt = [self._salt(row, len(looks)) for row, looks in seen]
        keys = band_keys(first, self._settings.distance + 1, np.array(salt, dtype=np.uint64))
        self._neighbours.add(np.array([row.position for row, _ in seen]), keys)
        self._place.store.executemany(
            f"INSERT OR REPLACE INTO {self._images} VALUES (?, ?)",
            ((row.position, looks.tobytes()) for row, looks in seen),
        )
        yield from ()

    def _salt(self, row: Row, images: int) -> int:
        text = normalise(row.text) if self._settings.text == "same" else ""
        content = images.to_bytes(4, "big") + text.encode("utf-8", errors="surrogatepass")
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")

    def finish(self) -> Iterator[Drop]:
        return self._neighbours.drops(self._near)

    def _near(self, position: int, candidates: Sequence[int]) -> str | None:
        if not candidates:
            return None
        others = np.stack([self._looks(candidate) for candidate in candidates])
        distances, differences = (
            found.max(axis=1) for found in compare_looks(self._looks(position), others)
        )
        near = np.flatnonzero(
            is_near(distances, differences, self._settings.distance, self._settings.tolerance)
        )
        if not near.size:
            return None
        first = int(near[0])
        name = self._place.name_of(candidates[first])
        return f"image hash {int(distances[first])} bits from that of {name}"

    def _looks(self, position: int) -> np.ndarray:
        (blob,) = self._place.store.execute(
            f"SELECT looks FROM {self._images} WHERE position = ?", (position,)
        ).fetchone()
        return np.frombuffer(blob, dtype=LOOK)


def looks_of(row: Row) -> np.ndarray | None:
    """Return the looks of a row's images, (n,) of `LOOK`; None without images or without a hash for one."""
    looks = [
        look_of(facts)
        for media, facts in zip(row.record.media(), row.media, strict=True)
        if media.modality == "image"
    ]
    hashed = [look for look in looks if look is not None]
    return np.concatenate(hashed) if hashed and len(hashed) == len(looks) else None


def band_keys(hashes: np.ndarray, bands: int, salt: np.ndarray) -> np.ndarray:
    """Return keys (n, bands) int64 of 64-bit hashes (n,): equal if a band's bits and the salt are."""
    edges = [BITS * band // bands for band in range(bands + 1)]
    bits = [
        (hashes >> np.uint64(low)) & np.uint64(2 ** (high - low) - 1)
        for low, high in pairwise(edges)
    ]
    seeds = mix(salt[:, None] + GOLDEN * np.arange(1, bands + 1, dtype=np.uint64))
    return mix(seeds ^ np.stack(bits, axis=1)).view(np.int64)
