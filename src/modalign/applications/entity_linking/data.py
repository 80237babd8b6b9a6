"""Read mentions and entities, and refuse unusable ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modalign.applications.rows import Row, read_all, refuse_repeated
from modalign.data.records import Source


@dataclass(frozen=True)
class Entity:
    """An entity of the base."""

    id: str
    name: str
    description: str
    source: Source


@dataclass(frozen=True)
class Mention:
    """A mention in its sentence; ``entity`` is the right one, or None if it is not known."""

    id: str
    mention: str
    sentence: str
    entity: str | None
    source: Source


def words_of(text: str) -> frozenset[str]:
    """Return the words of a text, lower-cased."""
    return frozenset(re.findall(r"\w+", text.lower()))


def read_entities(path: str | Path) -> list[Entity]:
    """Read a base: ``id``, ``name`` and, if there is one, ``description``.

    Raises:
        DataError: unusable rows, or an id that occurs twice.
    """

    def read(row: Row) -> Entity:
        told = row.fields.get("description") or ""
        return Entity(row.text("id"), row.text("name"), str(told), row.source)

    found: list[Entity] = read_all(path, read)
    refuse_repeated(((each.id, each.source) for each in found), "id")
    return found


def read_mentions(path: str | Path) -> list[Mention]:
    """Read mentions: ``mention`` and ``sentence`` and, if given, ``id``, ``start``, ``end`` and ``entity``.

    Raises:
        DataError: some rows are unusable, for example because a mention is not in its sentence.
    """

    def read(row: Row) -> Mention:
        mention, sentence = row.text("mention"), row.text("sentence")
        start, end = row.fields.get("start"), row.fields.get("end")
        if isinstance(start, int) and isinstance(end, int):
            if sentence[start:end] != mention:
                raise ValueError(
                    f"the mention {mention!r} is not at {start} to {end} of its sentence, where "
                    f"{sentence[start:end]!r} stands: correct start and end (characters)"
                )
        elif mention not in sentence:
            raise ValueError(f"the mention {mention!r} is not in its sentence")
        gold, name = row.fields.get("entity"), row.fields.get("id")
        return Mention(
            str(name) if name is not None else f"{Path(row.source.file).name}:{row.source.row}",
            mention,
            sentence,
            str(gold) if gold not in (None, "") else None,
            row.source,
        )

    return read_all(path, read)


def ambiguous(mentions: Sequence[Mention], entities: Sequence[Entity]) -> list[list[int]]:
    """Return for each mention the places of entities whose names hold all of its words."""
    holders: dict[str, set[int]] = {}
    for place, entity in enumerate(entities):
        for word in words_of(entity.name):
            holders.setdefault(word, set()).add(place)
    found = []
    for each in mentions:
        sets = [holders.get(word, set()) for word in words_of(each.mention)]
        found.append(sorted(set.intersection(*sets)) if sets else [])
    return found
