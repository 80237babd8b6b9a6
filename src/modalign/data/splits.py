"""Hold out validation data so that no image is on both sides, and find images that are.

Records belong together if they share a `group` or the content of a medium (a copy under another
name is the same medium), directly or through others. Which groups are held out depends only on
their content, not on the order of the rows or on chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from modalign.data.records import Media, Record, Source
from modalign.errors import DataError, UsageError


@dataclass(frozen=True, slots=True)
class Leak:
    """A medium that occurs on both sides: its content hash and first occurrences."""

    content: str
    train: Source
    evaluation: Source


def split_validation(
    records: Sequence[Record], share: float = 0.1, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """Hold out about `share` of the records, in whole groups.

    Groups are taken in the order of their hash as long as this brings the size closer to `share`;
    if all are too large, the smallest is taken. Both sides keep the order of the records.
    Another `seed` gives other hashes, hence another split.

    Returns:
        The training records, and those held out.

    Raises:
        DataError: all records belong to one group, or a medium cannot be read.
        UsageError: `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"share is {share}: give a number between 0 and 1")
    names = _group_names(records)
    sizes: dict[str, int] = {}
    for name in names:
        sizes[name] = sizes.get(name, 0) + 1
    if len(sizes) < 2:
        raise DataError(
            f"{len(records)} record(s) in {len(sizes)} group: nothing can be held out without "
            "sharing an image with the rest. Add data, or give separate validation data."
        )
    chosen = _choose(sizes, share * len(records), seed)
    train = [record for record, name in zip(records, names, strict=True) if name not in chosen]
    held = [record for record, name in zip(records, names, strict=True) if name in chosen]
    return train, held


def leakage(train: Sequence[Record], evaluation: Sequence[Record]) -> list[Leak]:
    """List the media that occur in both sets, by content, in the order of `evaluation`.

    Raises:
        DataError: a medium cannot be read.
    """
    hashes = _content_hashes([*train, *evaluation])
    seen = _first_seen(train, hashes)
    found = _first_seen(evaluation, hashes)
    return [Leak(content, seen[content], at) for content, at in found.items() if content in seen]


def _first_seen(records: Iterable[Record], hashes: dict[Media, str]) -> dict[str, Source]:
    first: dict[str, Source] = {}
    for record in records:
        for media in record.media():
            first.setdefault(hashes[media], record.source)
    return first


def _choose(sizes: dict[str, int], target: float, seed: int) -> set[str]:
    def place(name: str) -> str:
        return hashlib.sha256(f"{seed} {name}".encode()).hexdigest() if seed else name

    total = sum(sizes.values())
    chosen: set[str] = set()
    size = 0
    for name in sorted(sizes, key=place):
        after = size + sizes[name]
        if abs(after - target) < abs(size - target) and after < total:
            chosen.add(name)
            size = after
    return chosen or {min(sizes, key=lambda name: (sizes[name], name))}


def _group_names(records: Sequence[Record]) -> list[str]:
    """Name each record's connected component by the smallest hash of its keys."""
    hashes = _content_hashes(records)
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    keys = [_keys(record, hashes) for record in records]
    for first, *others in keys:
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return [root(first) for first, *_ in keys]


def _keys(record: Record, hashes: dict[Media, str]) -> list[str]:
    ties = [f"media {hashes[media]}" for media in record.media()]
    if record.group is not None:
        ties.append(f"group {record.group}")
    return [hashlib.sha256(tie.encode()).hexdigest() for tie in ties or [f"id {record.id}"]]


def _content_hashes(records: Iterable[Record]) -> dict[Media, str]:
    first = {media: record for record in records for media in record.media()}

    def content_hash(item: tuple[Media, Record]) -> str:
        media, record = item
        try:
            return media.content_hash()
        except (OSError, ValueError) as error:
            raise DataError(f"{record.source}: {media.label} cannot be read ({error})") from None

    with ThreadPoolExecutor() as pool:
        return dict(zip(first, pool.map(content_hash, first.items()), strict=True))


def drawn_over_skills(records: Sequence[Record], limit: int | None, seed: int = 0) -> list[Record]:
    """So many records at random, every skill by its share and at least once where there is room.

    Args:
        records: all of them; they keep their order.
        limit: how many; None for all.
        seed: of the draw.
    """
    if limit is None or limit >= len(records):
        return list(records)
    places: dict[str | None, list[int]] = {}
    for place in np.random.default_rng(seed).permutation(len(records)).tolist():
        places.setdefault(records[place].skill, []).append(place)
    ranked = sorted(
        ((number + 0.5) / len(own) if number else 0.0, place)
        for own in places.values()
        for number, place in enumerate(own)
    )
    return [records[place] for place in sorted(place for _, place in ranked[:limit])]
