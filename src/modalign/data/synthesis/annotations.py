"""Read annotations of media (captions, boxes, structure) into one form.

Any supported container works, and COCO's JSON (``images``, ``annotations`` and ``categories`` in one object).
The fields of a row's annotations:

* captions: ``caption``, ``captions`` or ``text``; or a chat or LLaVA row of one turn, whose answer is the caption;
* boxes: a list of mappings in ``boxes``, ``objects`` or ``annotations``, each with a ``label`` (or
  ``category``, ``name``) and ``box`` (corners x1, y1, x2, y2) or ``bbox`` (COCO's x, y, width, height),
  in pixels unless a scale is given; ``objects`` may also be columns, as data sets of the hub have them;
* structure: a mapping in ``attributes``, or things (mappings) or groups of things (lists of them) in
  ``boxes``, ``objects``, ``items`` or ``scene``.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modalign.data.images import stored_size
from modalign.data.readers import Problem, open_rows
from modalign.data.readers.result import Fields, RawRow, RowError
from modalign.data.readers.rows import Context, build_record
from modalign.data.records import Media, Record, Source, media_columns
from modalign.data.signals import SignalError
from modalign.errors import DataError
from modalign.strict_json import loads

From = Literal["captions", "boxes", "structure"]
LABELS = ("label", "category", "name", "category_name")
CAPTIONS = ("captions", "caption", "text")
BOXES = ("boxes", "objects", "annotations")
STRUCTURE = ("boxes", "objects", "items", "scene")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """An object in an image.

    Attributes:
        label: its name.
        box: corners (x1, y1, x2, y2) as shares of the image's width and height.
        crowd: several under one box, which cannot be counted.
    """

    label: str
    box: Box
    crowd: bool = False


@dataclass(frozen=True)
class Item:
    """The media of one row and their annotations.

    Attributes:
        group: the image: shared by all records made from one image.
        groups: of a structure: objects by group; one group if there are none.
        row: its fields as in the file.
    """

    id: str
    media: tuple[Media, ...]
    group: str
    source: Source
    row: Fields = field(repr=False)
    captions: tuple[str, ...] = ()
    things: tuple[Thing, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    groups: tuple[tuple[dict[str, Any], ...], ...] = ()


def read_items(
    path: str | Path,
    kind: From,
    media_root: str | Path | None = None,
    box_scale: float | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[list[Item], list[Problem]]:
    """Read a file's annotated media; rows that cannot be used become problems.

    Args:
        path: of the file.
        kind: which annotations are read.
        media_root: the folder that relative media paths start from.
        box_scale: what the image's width and height count in the boxes (1: shares); else they are in pixels.
        columns: column that is read -> its name in the file.

    Raises:
        DataError: the file cannot be read at all.
    """
    coco = _coco(Path(path))
    if coco is None:
        rows, context = open_rows(path, media_root=media_root, columns=columns)
    else:
        root = Path(media_root) if media_root is not None else Path(path).parent
        rows, context = coco, Context(str(path), Path(os.path.abspath(root)))
    items: list[Item] = []
    problems: list[Problem] = []
    for number, fields in rows:
        try:
            if isinstance(fields, RowError):
                raise fields
            items.append(_item(fields, kind, context, number, box_scale))
        except (RowError, SignalError) as error:
            found: Any = error.kind
            problems.append(Problem(Source(context.file, number), found, str(error)))
    return items, problems


def _item(
    fields: Fields, kind: From, context: Context, number: int, box_scale: float | None
) -> Item:
    record = _media_of(fields, context, number)
    media = tuple(record.media())
    if not media:
        raise RowError("missing-media", "the row has no image: give it in the field image")
    first = media[0]
    name = os.path.relpath(first.path, context.root) if first.path else first.content_hash()
    notes: dict[str, Any] = {}
    if kind == "captions":
        notes["captions"] = _captions(fields, context, number)
    elif kind == "boxes":
        notes["things"] = _things(fields, first, box_scale)
    else:
        notes["attributes"], notes["groups"] = _structure(fields)
    return Item(
        record.id, media, record.group or Path(name).as_posix(), record.source, fields, **notes
    )


def _media_of(fields: Fields, context: Context, number: int) -> Record:
    if fields.get("messages") or fields.get("conversations"):
        return build_record(fields, context, number)
    kept = {"id", "group", *(c for m in context.modalities for c in media_columns(m))}
    bare = {key: value for key, value in fields.items() if key in kept}
    return build_record({**bare, "question": "?", "answer": "!"}, context, number)


def _given(fields: Fields, names: Iterable[str]) -> Any:
    return next((fields[name] for name in names if fields.get(name)), None)


# --- captions -----------------------------------------------------------------------------------


def _captions(fields: Fields, context: Context, number: int) -> tuple[str, ...]:
    value = _given(fields, CAPTIONS)
    if value is None and (fields.get("messages") or fields.get("conversations")):
        record = build_record(fields, context, number)
        value = record.answer if sum(m.role == "assistant" for m in record.messages) == 1 else None
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError("row", f"no caption: fill in one of the fields {', '.join(CAPTIONS)}")
    cleaned = tuple(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))
    if not cleaned:
        raise RowError("empty-answer", "the caption is empty: fill it in or remove the row")
    return cleaned


# --- boxes --------------------------------------------------------------------------------------


def _things(fields: Fields, image: Media, scale: float | None) -> tuple[Thing, ...]:
    rows = _given(fields, BOXES)
    if isinstance(rows, dict):  # columns: {"bbox": [...], "category": [...]}
        columns = {key: value for key, value in rows.items() if isinstance(value, list)}
        lengths = {len(value) for value in columns.values()}
        if len(lengths) > 1:
            raise RowError("row", "the columns of objects have unequal lengths")
        rows = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
    if rows is None and any(name in fields for name in BOXES):
        return ()  # an image of nothing: it answers "no"
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RowError("row", f"no list of boxes: fill in one of the fields {', '.join(BOXES)}")
    if scale is not None:
        return tuple(_thing(row, scale, scale, 0.01 * scale) for row in rows)
    size = fields.get("width"), fields.get("height")
    known = size if all(map(_number, size)) else stored_size(image)
    width, height = (float(side or 0) for side in known)
    things = tuple(_thing(row, width, height) for row in rows)
    if things and all(t.box[2] * width <= 1 and t.box[3] * height <= 1 for t in things):
        raise RowError(
            "row",
            f"no coordinate of its boxes is above 1, in an image of {width:g} x {height:g} pixels: shares of "
            "width and height are read with --box-scale 1",
        )
    return things


def _thing(row: dict[str, Any], width: float, height: float, slack: float = 1.0) -> Thing:
    """A named box; one that leaves the image by up to ``slack`` is rounded, not wrong."""
    label = _given(row, LABELS)
    if not isinstance(label, str) or not label.strip():
        raise RowError("row", f"a box has no name: give it a text in {' or '.join(LABELS)}")
    corners = row.get("box", row.get("bbox"))
    if not isinstance(corners, list | tuple) or len(corners) != 4 or not all(map(_number, corners)):
        raise RowError("row", f"the box of {label!r} is not four numbers, but {corners!r}")
    x1, y1, x2, y2 = (float(value) for value in corners)
    if "box" not in row:
        x2, y2 = x1 + x2, y1 + y2
    if not (width > 0 and height > 0 and x1 < x2 and y1 < y2):
        raise RowError("row", f"the box of {label!r} is empty or turned: {corners!r}")
    if x1 < -slack or y1 < -slack or x2 > width + slack or y2 > height + slack:
        raise RowError(
            "row",
            f"the box of {label!r}, {corners!r}, leaves the image of {width:g} x {height:g}; 'box' is "
            "x1, y1, x2, y2 and 'bbox' is x, y, width, height, in pixels, or as shares with --box-scale 1, or "
            "as thousandths with --box-scale 1000",
        )
    box = (x1 / width, y1 / height, x2 / width, y2 / height)
    return Thing(" ".join(label.split()), box, bool(row.get("iscrowd")))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


# --- structure ----------------------------------------------------------------------------------


def _structure(
    fields: Fields,
) -> tuple[dict[str, Any], tuple[tuple[dict[str, Any], ...], ...]]:
    attributes = fields.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise RowError("row", "attributes is not a mapping of names to values")
    listed = _given(fields, STRUCTURE) or []
    groups = listed if listed and all(isinstance(part, list) for part in listed) else [listed]
    if not all(isinstance(thing, dict) for group in groups for thing in group):
        raise RowError("row", "objects are mappings of attributes, alone or in lists, not both")
    if not attributes and not listed:
        names = ", ".join(("attributes", *STRUCTURE))
        raise RowError("row", f"no structure: fill in one of the fields {names}")
    return attributes, tuple(tuple(group) for group in groups) if listed else ()


# --- COCO ---------------------------------------------------------------------------------------


def _coco(path: Path) -> Iterator[RawRow] | None:
    """Yield the rows of a COCO file, one per image; None if it is not one."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    with path.open("rb") as file:
        if not file.read(64).lstrip().startswith(b"{"):
            return None
    try:
        whole = loads(path.read_bytes())
    except ValueError:
        return None  # the ordinary reader reports the problem
    if not isinstance(whole, dict) or not {"images", "annotations"} <= whole.keys():
        return None
    return _coco_rows(path, whole)


def _coco_rows(path: Path, whole: dict[str, Any]) -> Iterator[RawRow]:
    try:
        names = {entry["id"]: entry["name"] for entry in whole.get("categories", [])}
        notes: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for note in whole["annotations"]:
            named = {"label": names[note["category_id"]]} if "category_id" in note else {}
            notes[note["image_id"]].append({**note, **named})
        images = [(dict(entry), entry["id"], entry["file_name"]) for entry in whole["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not in COCO's format: {error!r} is missing or of a wrong type"
        ) from None
    for number, (entry, key, name) in enumerate(images, start=1):
        own = notes[key]
        captions = [note["caption"] for note in own if isinstance(note.get("caption"), str)]
        boxes = [note for note in own if "bbox" in note]
        size = {side: entry[side] for side in ("width", "height") if side in entry}
        yield number, {
            "id": str(key), "image": name, "captions": captions, "boxes": boxes, **size
        }  # fmt: skip
