"""Read items with pictures and texts, and photographs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modalign.applications.rows import Row, read_all, refuse_repeated
from modalign.data.images import open_image
from modalign.data.records import Media, Message, Record, Source
from modalign.data.signals import SignalError
from modalign.errors import DataError

Shown = Literal["picture", "text", "picture + text"]


@dataclass(frozen=True)
class Item:
    """An item: a text, a picture or both; ``kind`` is the class that related items share."""

    id: str
    text: str
    picture: Media | None
    kind: str
    source: Source


@dataclass(frozen=True)
class Photo:
    """A photograph of an item, with words about it if given; those for training may be compared with."""

    picture: Media
    text: str
    item: str
    test: bool
    source: Source


def read_items(path: str | Path) -> list[Item]:
    """Read items: ``id`` or ``item_id``; ``text``, or ``name`` and ``description``; ``image`` or ``iconic_image``.

    Raises:
        DataError: some rows are unusable: no picture and no text, a picture that does not open, a repeated id.
    """

    def read(row: Row) -> Item:
        named = row.text("item_id" if "item_id" in row.fields else "id")
        texts = [row.fields.get(name) for name in ("text", "name", "description")]
        text = ": ".join(
            str(each).strip() for each in texts if isinstance(each, str) and each.strip()
        )
        file = row.fields.get("image") or row.fields.get("iconic_image")
        if not text and not file:
            raise ValueError("has neither text nor a picture, so it has no vector: fill it in")
        picture = _picture(row, str(file)) if file else None
        kind = str(row.fields.get("kind") or row.fields.get("coarse") or "")
        return Item(named, text, picture, kind, row.source)

    found = read_all(path, read)
    refuse_repeated(((each.id, each.source) for each in found), "id")
    if len(found) < 2:
        raise DataError(f"{path}: one item: there is nothing to tell it from")
    return found


def read_photos(path: str | Path, items: Sequence[Item]) -> list[Photo]:
    """Read photographs: ``image``, ``item`` (or ``item_id``), ``split`` (train or test), where given ``text``.

    Raises:
        DataError: unusable rows, unknown items, or none to test.
    """
    known = {each.id for each in items}

    def read(row: Row) -> Photo:
        named = row.text("item_id" if "item_id" in row.fields else "item")
        if named not in known:
            raise ValueError(f"no item has the id {named!r}")
        test = str(row.fields.get("split") or "test") == "test"
        text = row.text("text") if row.fields.get("text") is not None else ""
        return Photo(_picture(row, row.text("image")), text, named, test, row.source)

    found = read_all(path, read)
    if not any(each.test for each in found):
        raise DataError(f"{path}: no photograph is for test (split: test)")
    return found


def _picture(row: Row, file: str) -> Media:
    made = Media("image", path=str(Path(row.source.file).parent / file), source=row.source)
    try:
        open_image(made)
    except SignalError as error:
        raise ValueError(f"the picture {file}: {error.reason}") from error
    return made


def asked(picture: Media | None, text: str, shown: Shown, source: Source) -> Record | None:
    """Return an item or a photograph as a record to embed; None if it lacks what is to be shown."""
    parts = (picture if "picture" in shown else None, text if "text" in shown else "")
    given = tuple(part for part in parts if part)
    if not given:
        return None
    return Record(str(source), (Message("user", given), Message("assistant", ("?",))), source)
