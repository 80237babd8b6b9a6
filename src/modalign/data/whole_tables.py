"""Tables as a whole: read with a header and rows of cells, written as text or drawn as a picture.

A medium of the modality ``table`` is one row (:mod:`modalign.data.tables`). A whole table goes in as
something that a model has a way to read: text in the question, or a picture.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from modalign.data.cells import csv_columns, parquet_cells
from modalign.data.modalities import check_medium
from modalign.data.records import Media, Message, Part, Record
from modalign.data.signals import SignalError, inline_value, missing
from modalign.data.tables import open_table
from modalign.errors import UsageError, choose
from modalign.strict_json import loads

PICTURE = "picture"
FONT, PADDING, LINE = 16, 6, "#888888"  # of pictures: pixels, pixels, colour


@dataclass(frozen=True)
class WholeTable:
    """Texts of cells, by row; every row is as long as the header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def open_whole(media: Media) -> WholeTable:
    """Read a whole table: CSV, TSV, Parquet or JSON; a single row is a table of one.

    JSON holds rows as lists, the first of which is the header, or as mappings.

    Raises:
        SignalError: it cannot be read, or its rows have unequal lengths.
    """
    if media.data is not None:
        return _from_json(media, inline_value(media))
    file, part = media.located()
    suffix = file.suffix.lower()
    if part is not None:
        return _of_mappings([open_table(media)])
    try:
        if suffix in {".csv", ".tsv"}:
            header, rows = csv_columns(media, file)
            width = len(rows[0]) if rows else 0
            return _of_lists(media, [header or [f"column {n + 1}" for n in range(width)], *rows])
        if suffix == ".parquet":
            return _of_lists(media, parquet_cells(media, file))
        return _from_json(media, loads(file.read_bytes()))
    except FileNotFoundError:
        raise missing(media) from None
    except (OSError, ValueError) as error:
        raise SignalError(media, f"no table can be read from it ({error})") from None


def _from_json(media: Media, value: Any) -> WholeTable:
    if isinstance(value, dict) and isinstance(value.get("rows"), list):
        value = [value.get("columns", value.get("header", [])), *value["rows"]]
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return _of_mappings(value)
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise SignalError(media, "is no table: give a list of rows, the first of them the header")
    return _of_lists(media, value)


def _of_mappings(rows: Sequence[dict[str, Any]]) -> WholeTable:
    header = tuple(dict.fromkeys(name for row in rows for name in row))
    cells = (tuple(_text(row.get(name)) for name in header) for row in rows)
    return WholeTable(header, tuple(cells))


def _of_lists(media: Media, rows: Sequence[Sequence[Any]]) -> WholeTable:
    if not rows:
        raise SignalError(media, "is a table without rows")
    header, *cells = (tuple(map(_text, row)) for row in rows)
    for number, row in enumerate(cells):
        if len(row) != len(header):
            raise SignalError(media, f"row {number} has {len(row)} cells, not {len(header)}")
    return WholeTable(header, tuple(cells))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())


# --- as text ------------------------------------------------------------------------------------


def _markdown(table: WholeTable) -> str:
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in row)} |" for row in rows)


def _csv(table: WholeTable) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.header, *table.rows])
    return text.getvalue().rstrip("\n")


def _json(table: WholeTable) -> str:
    rows = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def _sentences(table: WholeTable) -> str:
    return "\n".join(
        f"row {number}: "
        + ", ".join(f"{name}: {c}" for name, c in zip(table.header, row, strict=True) if c)
        for number, row in enumerate(table.rows, 1)
    )


SERIALISATIONS: dict[str, Callable[[WholeTable], str]] = {
    "markdown": _markdown,
    "csv": _csv,
    "json": _json,
    "sentences": _sentences,
}


# --- as a picture -------------------------------------------------------------------------------


def drawn(table: WholeTable) -> bytes:
    """A picture of a table: PNG, black on white, every cell on one line."""
    font = ImageFont.load_default(FONT)
    rows = (table.header, *table.rows)
    widths = [
        2 * PADDING + int(max(font.getlength(row[column]) for row in rows))
        for column in range(len(table.header))
    ]
    height = FONT + 2 * PADDING
    picture = Image.new("RGB", (sum(widths) + 1, height * len(rows) + 1), "white")
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        left, top = 0, number * height
        for width, text in zip(widths, row, strict=True):
            fill = "#eeeeee" if number == 0 else "white"
            draw.rectangle((left, top, left + width, top + height), fill=fill, outline=LINE)
            draw.text((left + PADDING, top + PADDING - 1), text, fill="black", font=font)
            left += width
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


# --- in records ---------------------------------------------------------------------------------


def check_whole(media: Media) -> int | None:
    """Open a medium to see that it can be used: a table as a whole, another as its modality does.

    Raises:
        SignalError: it cannot be read.
    """
    if media.modality != "table":
        return check_medium(media)
    open_whole(media)
    return None


def with_tables_as(record: Record, form: str) -> Record:
    """A record whose tables are text before what follows them, or pictures.

    Args:
        record: with media of the modality ``table``.
        form: one of ``SERIALISATIONS``, or ``picture``.

    Raises:
        UsageError: no such form.
        SignalError: a table that cannot be read.
    """
    if form not in (*SERIALISATIONS, PICTURE):
        raise UsageError(f"no form {form!r} of a table: {choose(form, (*SERIALISATIONS, PICTURE))}")

    def told(part: Part) -> Part:
        if isinstance(part, str) or part.modality != "table":
            return part
        table = open_whole(part)
        if form == PICTURE:
            return Media("image", data=drawn(table), source=record.source)
        return f"{SERIALISATIONS[form](table)}\n\n"

    turns = (Message(m.role, tuple(map(told, m.parts))) for m in record.messages)
    return replace(record, messages=tuple(turns), group=record.group or _tables_of(record))


def _tables_of(record: Record) -> str | None:
    """What tells a record's tables from others, so that one is never on both sides of a split."""
    hashes = [m.content_hash() for m in record.media() if m.modality == "table"]
    return "+".join(hashes) or None
