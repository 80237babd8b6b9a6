"""Documents cut into paragraphs and tables: PDF by pdfplumber (extra ``documents``), HTML, plain text."""

from __future__ import annotations

from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from modalign.errors import DataError, UsageError, extra, first_line

Cells = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Piece:
    """A paragraph or a table of a document.

    Attributes:
        number: its place in the document.
        text: of a paragraph.
        table: (rows, columns) cells; merged ones stand in every place that they cover.
        page: where pages are known, from 1.
    """

    number: int
    text: str = ""
    table: Cells = ()
    page: int | None = None


def pieces_of_pdf(file: Path) -> list[Piece]:
    """Read every page's ruled tables and its text.

    Raises:
        DataError: it is encrypted or no PDF.
        UsageError: pdfplumber is not installed.
    """
    try:
        import pdfplumber
    except ImportError as error:
        raise UsageError(f"{file}: PDF needs pdfplumber: {extra('documents')}") from error
    pieces: list[Piece] = []
    try:
        with pdfplumber.open(file) as opened:
            for number, page in enumerate(opened.pages, 1):
                for table in page.extract_tables():
                    filled = tuple(tuple(cell or "" for cell in row) for row in table)
                    pieces.append(Piece(len(pieces), table=filled, page=number))
                pieces.append(Piece(len(pieces), page.extract_text() or "", page=number))
    except Exception as error:  # its parser raises many kinds
        said = (
            first_line(error)
            if str(error)
            else "it is encrypted or no PDF; save it without a password"
        )
        raise DataError(f"{file} cannot be read as PDF: {said}") from error
    return pieces


class _Pieces(HTMLParser):
    """Collect tables and what stands between them."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[Piece] = []
        self.rows: list[list[tuple[str, int, int]]] | None = None
        self.words: list[str] = []
        self.span = (1, 1)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a table, row, cell or paragraph."""
        if tag in ("table", "p", "div", "h1", "h2", "h3", "li"):
            self.end_text()
        if tag == "table":
            self.rows = []
        elif tag == "tr" and self.rows is not None:
            self.rows.append([])
        elif tag in ("td", "th"):
            self.words, given = [], dict(attrs)
            down, right = (given.get(name) or "1" for name in ("rowspan", "colspan"))
            self.span = tuple(
                min(int(n), 1000) if n.isdigit() and int(n) else 1 for n in (down, right)
            )  # type: ignore[assignment]

    def handle_endtag(self, tag: str) -> None:
        """End a cell, a table or a paragraph."""
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append((" ".join("".join(self.words).split()), *self.span))
            self.words = []
        elif tag == "table" and self.rows is not None:
            self.pieces.append(Piece(len(self.pieces), table=_spread(self.rows)))
            self.rows, self.words = None, []
        elif tag in ("p", "div", "li"):
            self.end_text()

    def handle_data(self, data: str) -> None:
        """Collect text."""
        self.words.append(data)

    def end_text(self) -> None:
        """Keep what was said outside of tables."""
        text = " ".join("".join(self.words).split())
        if text and self.rows is None:
            self.pieces.append(Piece(len(self.pieces), text))
        if self.rows is None:
            self.words = []


def _spread(rows: list[list[tuple[str, int, int]]]) -> Cells:
    """Put merged cells into every place that they cover."""
    grid: dict[tuple[int, int], str] = {}
    for at, row in enumerate(rows):
        column = 0
        for text, down, right in row:
            while (at, column) in grid:
                column += 1
            for place in ((at + d, column + r) for d in range(down) for r in range(right)):
                grid[place] = text
            column += right
    height, width = len(rows), max((c for _, c in grid), default=-1) + 1
    return tuple(tuple(grid.get((r, c), "") for c in range(width)) for r in range(height))


def pieces_of_html(text: str) -> list[Piece]:
    """Read tables, with merged cells in every place that they cover, and the text between them."""
    parser = _Pieces()
    parser.feed(text)
    parser.close()
    parser.end_text()
    return parser.pieces
