"""Read documents as paragraphs and tables, from JSON, HTML, text or PDF; every piece keeps its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalign.applications.rows import Row, read_all, read_text
from modalign.data.pieces import Piece, pieces_of_html, pieces_of_pdf
from modalign.errors import DataError


@dataclass(frozen=True)
class Document:
    """A document; ``extra`` holds the other fields of its row, such as questions."""

    name: str
    pieces: tuple[Piece, ...]
    extra: dict[str, Any] = field(default_factory=dict)

    def texts(self) -> Iterator[str]:
        """Yield every paragraph and cell."""
        for piece in self.pieces:
            yield from (cell for row in piece.table for cell in row)
            yield piece.text


def read_documents(path: str | Path) -> list[Document]:
    """Read a PDF, HTML or text file as one document, or JSON rows of ``table`` and ``paragraphs``.

    Raises:
        DataError: there is no text, a PDF is encrypted or scanned, or a table is not rows of cells.
    """
    file = Path(path)
    kind = file.suffix.lower()
    if kind not in (".pdf", ".html", ".htm", ".txt", ".md"):
        return read_all(path, _of_row)
    if kind == ".pdf":
        pieces = pieces_of_pdf(file)
    elif kind in (".html", ".htm"):
        try:
            pieces = pieces_of_html(read_text(file))
        except DataError as error:
            raise DataError(f"{file}: {error}") from None
    else:
        pieces = [
            Piece(n, text) for n, text in enumerate(read_text(file).split("\n\n")) if text.strip()
        ]
    if not any(piece.table or piece.text.strip() for piece in pieces):
        raise DataError(f"{file}: has no text; scanned pages need OCR first (modalign tools run)")
    return [Document(file.name, tuple(pieces))]


def _of_row(row: Row) -> Document:
    given = row.fields.get("table") or []
    table = given.get("table") if isinstance(given, dict) else given
    if not isinstance(table, list) or not all(isinstance(cells, list) for cells in table):
        raise ValueError("table is no list of rows of cells")
    width = max(map(len, table), default=0)
    rows = tuple(tuple(str(c) for c in [*cells, *[""] * (width - len(cells))]) for cells in table)
    told = row.fields.get("paragraphs") or row.fields.get("text") or []
    texts = [each.get("text") if isinstance(each, dict) else each
             for each in (told if isinstance(told, list) else [told])]  # fmt: skip
    if not all(isinstance(text, str) for text in texts) or not (rows or texts):
        raise ValueError("no table and no paragraphs of text")
    pieces = [Piece(0, table=rows)] if rows else []
    pieces += [Piece(len(pieces) + n, str(text)) for n, text in enumerate(texts)]
    uid = given.get("uid") if isinstance(given, dict) else None
    name = row.fields.get("table_id") or row.fields.get("id") or uid or str(row.source)
    return Document(str(name), tuple(pieces), row.fields)
