"""Extract values by a table's headers or by a model, each only with its quote in the document."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modalign.applications.documents.reading import Document
from modalign.data.pieces import Cells, Piece
from modalign.data.quantities import SCALES, Decimal, Quantity, decimal_of, parse_quantity
from modalign.data.records import Message, Record, Source
from modalign.evaluation.generation import answer_records
from modalign.index.lexical import Lexical

SEEN = 3  # pieces that a model reads per field
TEMPLATE = "{examples}{text}\n\nQuestion: {field}\nAnswer with the exact words of the text."
YEAR = re.compile(r"^(19|20)\d\d$")


@dataclass(frozen=True)
class Value:
    """An extracted value with its place; offsets are in code points of the piece's text.

    Attributes:
        field: what was asked for.
        quote: its exact words in the document.
        value, unit, scale: of the number, if it is one.
        document, page, piece: where it stands.
        row, column: of a table's cell, from 0.
        start, end: of a span in a paragraph.
    """

    field: str
    quote: str
    value: float | None
    unit: str
    scale: str
    document: str
    page: int | None
    piece: int
    row: int | None = None
    column: int | None = None
    start: int | None = None
    end: int | None = None


def words_of(text: str) -> set[str]:
    """Return the lower-cased words and numbers of a text."""
    return set(re.findall(r"\w+", text.lower()))


def cells_of(table: Cells, decimal: Decimal) -> list[tuple[int, int, Quantity, str, str]]:
    """Return the numeric cells: row, column, number, the row's header and the column's headers."""
    found = []
    numbers = [[_number(cell, decimal) for cell in row] for row in table]
    for r, row in enumerate(table):
        label = next(
            (cell for cell, n in zip(row, numbers[r], strict=True) if cell.strip() and not n), ""
        )
        for c, number in enumerate(numbers[r]):
            if number is not None:
                above = " ".join(table[u][c] for u in range(r) if not numbers[u][c])
                found.append((r, c, number, label, above))
    return found


def _number(cell: str, decimal: Decimal) -> Quantity | None:
    return None if YEAR.match(cell.strip()) else parse_quantity(cell, decimal)


def by_headers(document: Document, field: str) -> Value | None:
    """Return the cell whose row's and columns' headers share most words with the field; None if none share any."""
    asked, decimal = words_of(field), decimal_of(document.texts())
    best, found = 0.0, None
    for piece in document.pieces:
        for row, column, number, label, above in cells_of(piece.table, decimal):
            own, top = words_of(label), words_of(above)
            shared = len(asked & own) + len(asked & top) - 0.01 * len(own - asked)
            if shared > best:
                best, found = shared, (piece, row, column, number)
    if found is None:
        return None
    piece, row, column, number = found
    scale = number.scale or scale_of(document, piece, column)
    where = (document.name, piece.page, piece.number)
    return _value(field, piece.table[row][column], number, scale, *where, row=row, column=column)


def scale_of(document: Document, piece: Piece, column: int) -> str:
    """Return the scale stated by a column's headers, else by the table, else by a paragraph: "in millions"."""
    cells = [cell for row in piece.table for cell in row]
    headers = [row[column] for row in piece.table[:3]]
    for texts in (headers, cells, [each.text for each in document.pieces]):
        for text in texts:
            if found := re.search(rf"\b({'|'.join(SCALES)})s?\b", text.lower()):
                return found[1]
    return ""


def grounded(document: Document, pieces: Sequence[Piece], field: str, quote: str) -> Value | None:
    """Return a quote with its place; None if the document does not contain it, as it then is not a value."""
    if not quote.strip():
        return None
    number = parse_quantity(quote, decimal_of(document.texts())) or Quantity(math.nan)
    for piece in pieces:
        here = (document.name, piece.page, piece.number)
        for r, row in enumerate(piece.table):
            for c, cell in enumerate(row):
                if cell.strip() == quote.strip():
                    return _value(field, cell, number, number.scale, *here, row=r, column=c)
        if (start := piece.text.find(quote)) >= 0:
            end = start + len(quote)
            return _value(field, quote, number, number.scale, *here, start=start, end=end)
    return None


def _value(
    field: str, quote: str, number: Quantity, scale: str, *where: Any, **place: Any
) -> Value:
    known = None if math.isnan(number.value) else number.value
    return Value(field, quote, known, number.unit, scale, *where, **place)


def plain(piece: Piece) -> str:
    """Return a piece as text: a table's rows with bars between cells."""
    return piece.text or "\n".join(" | ".join(row) for row in piece.table)


def by_model(
    document: Document, fields: Sequence[str], opened: tuple[Any, Any], examples: str = ""
) -> tuple[list[Value], int]:
    """Let a model answer from the three likeliest pieces; also count answers dropped for want of a quote."""
    texts = [plain(piece) for piece in document.pieces]
    scores = Lexical(texts, "words").scores(list(fields))
    seen = [
        [document.pieces[at] for at in sorted((-row).argsort(kind="stable")[:SEEN])]
        for row in scores
    ]
    asked = [
        TEMPLATE.format(examples=examples, text="\n\n".join(map(plain, own)), field=field)
        for field, own in zip(fields, seen, strict=True)
    ]
    records = [Record(f, (Message("user", (t,)),), Source(document.name, n))
               for n, (f, t) in enumerate(zip(fields, asked, strict=True))]  # fmt: skip
    said = answer_records(*opened, records, 24)
    found = [
        grounded(document, own, f, text) for f, own, text in zip(fields, seen, said, strict=True)
    ]
    return [value for value in found if value is not None], sum(value is None for value in found)
