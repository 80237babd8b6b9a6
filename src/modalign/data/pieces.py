"""Documents cut into paragraphs and tables: PDF by pdfplumber (extra ``documents``), HTML, plain text."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from modalign.data.patience import WAITING, allowed_seconds, more_than
from modalign.errors import DataError, UsageError, extra, first_line

PDF_MEMORY = 3 * 2**30  # bytes of the process that reads one, its libraries included
MAX_CELLS = (
    1_000_000  # of a table, with what merged cells cover: one cell of HTML may cover a million
)

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
    """Read every page's ruled tables and its text, in a process with limits of time and memory.

    Raises:
        DataError: it is encrypted, no PDF, or takes too much.
        UsageError: pdfplumber is not installed.
    """
    if importlib.util.find_spec("pdfplumber") is None:
        raise UsageError(f"{file}: PDF needs pdfplumber: {extra('documents')}")
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    seconds = allowed_seconds()
    command = [sys.executable, "-m", "modalign.data.pdf", str(file), str(seconds), str(PDF_MEMORY)]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=min(WAITING * seconds, 10**6), check=False
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"{file}: not read within {seconds:g} s: {more_than(seconds)}") from None
    if done.returncode == -signal.SIGXCPU:
        raise DataError(f"{file}: not read within {seconds:g} s: {more_than(seconds)}")
    answer: Any = json.loads(done.stdout) if done.returncode == 0 else "memory"
    if answer == "memory":
        raise DataError(
            f"{file}: reading it takes more than {PDF_MEMORY // 2**30} GiB, or ends its reader: print it anew, or "
            "give its text"
        )
    if isinstance(answer, dict):
        raise DataError(answer["error"])
    return [
        Piece(**each | {"table": tuple(tuple(row) for row in each["table"])}) for each in answer
    ]


def read_pdf(file: Path) -> list[Piece]:
    """Read a PDF in this process, without limits.

    Raises:
        DataError: it is encrypted or no PDF.
        MemoryError: it takes more than there is.
    """
    import pdfplumber

    pieces: list[Piece] = []
    try:
        with pdfplumber.open(file) as opened:
            for number, page in enumerate(opened.pages, 1):
                for table in page.extract_tables():
                    filled = tuple(tuple(cell or "" for cell in row) for row in table)
                    pieces.append(Piece(len(pieces), table=filled, page=number))
                pieces.append(Piece(len(pieces), page.extract_text() or "", page=number))
    except MemoryError:
        raise
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
    covered = sum(down * right for row in rows for _, down, right in row)
    if covered > MAX_CELLS:
        raise DataError(
            f"a table whose cells cover {covered:,} places; at most {MAX_CELLS:,} are read: split it"
        )
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
