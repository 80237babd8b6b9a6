"""Parts of a report: sections of words, tables, figures, galleries and entries over one set of results.

Every part has a ``source``: the JSON pointer (RFC 6901) of its figures in the results. Each reported figure is
declared once, as a :class:`Quantity`: its name, its unit, its format, and the field it is read from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from modalign.numbers import words
from modalign.numbers.estimate import Estimate
from modalign.pages.figures import Chart, Series

Tone = Literal["", "chosen", "reference", "better", "worse", "same", "failed", "right", "wrong"]


def show(value: Any, unit: str = "") -> str:
    """Format a number, a text or an estimate: ``71.3 % (68.0 to 74.4)``."""
    if isinstance(value, Estimate):
        return words.value(value) if ends_of(value)[1] is None else words.interval(value)
    return value if isinstance(value, str) else words.in_unit(value, unit)


def ends_of(value: Estimate | float) -> tuple[float, tuple[float, float] | None]:
    """Return the number, and its interval if it has one."""
    if isinstance(value, Estimate):
        known = value.bounded and value.interval != "exact"
        return value.value, (value.low, value.high) if known else None
    return float(value), None


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: the formatted value.
        note: smaller text after it.
        key: sort key; None goes last.
        tone: emphasis.
        mark: the series whose mark precedes the text.
        span: an interval drawn beside the text, as shares of the column's range: low, value, high.
        hint: tooltip, also read out.
        columns: number of columns spanned.
    """

    text: str
    note: str = ""
    key: float | str | None = None
    tone: Tone = ""
    mark: Series | None = None
    span: tuple[float, float, float] | None = None
    hint: str = ""
    columns: int = 1

    @property
    def number(self) -> bool:
        """Whether it is right-aligned."""
        return isinstance(self.key, int | float) or self.text == words.MISSING


@dataclass(frozen=True)
class Quantity:
    """A reported figure, declared once.

    Attributes:
        name: the heading of its column and the title of its axis.
        field: its field in a row of the results: a dotted path of attributes, or a function of the row.
        unit: unit of a bare number (``words.UNITS``); an estimate has its own.
        meaning: a sentence without its full stop.
        drawn: draw an estimate's interval beside the number.
        bare: show an estimate without its interval, in ``unit``.
    """

    name: str
    field: str | Callable[[Any], Any]
    unit: str = ""
    meaning: str = ""
    drawn: bool = False
    bare: bool = False

    def of(self, row: Any) -> Any:
        """Return the value: a number, a text, an estimate or None."""
        if callable(self.field):
            return self.field(row)
        found = row
        for name in self.field.split("."):
            found = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
            if found is None:
                return None
        return found

    def number(self, row: Any) -> float | None:
        """Return the value as a number: an estimate without its interval."""
        found = self.of(row)
        return None if found is None else ends_of(found)[0]

    def text(self, row: Any) -> str:
        """Return the formatted value."""
        found = self.of(row)
        if isinstance(found, Cell):
            return found.text
        return show(self.number(row) if self.bare else found, self.unit)

    def cell(self, row: Any, scale: tuple[float, float] | None = None) -> Cell:
        """Return the value as a cell; ``scale`` is the range of the drawn interval."""
        found = self.of(row)
        if isinstance(found, Cell):
            return found
        if found is None or isinstance(found, str):
            return Cell(show(found), key=found)
        value, ends = ends_of(found)
        span = None
        if self.drawn and ends and scale:
            width = (scale[1] - scale[0]) or 1.0
            low, middle, high = ((each - scale[0]) / width for each in (ends[0], value, ends[1]))
            span = (low, middle, high)
        note = f"({words.ends(found)})" if ends and not self.bare else ""
        return Cell(self.text(row).removesuffix(note).rstrip(), note, value, span=span)

    def scale(self, rows: Iterable[Any]) -> tuple[float, float] | None:
        """Return the range of all values and intervals."""
        found = [ends_of(value) for row in rows if (value := self.of(row)) is not None]
        ends = [end for value, known in found for end in (value, *(known or ()))]
        return (min(ends), max(ends)) if ends else None


@dataclass(frozen=True)
class Row:
    """A row of a table; ``tone`` is ``chosen``, or ``reference`` for an untrained one."""

    cells: Sequence[Cell]
    tone: Tone = ""


@dataclass(frozen=True)
class Part:
    """Base of all parts of a section.

    Attributes:
        id: id in the page.
        caption: caption.
        source: JSON pointer of its figures in the report.
    """

    id: str
    caption: str
    source: str


@dataclass(frozen=True)
class Words(Part):
    """Sentences: paragraphs, a list, notes, or a command to copy."""

    sentences: Sequence[str] = ()
    form: Literal["paragraphs", "list", "note", "command"] = "paragraphs"


@dataclass(frozen=True)
class Advice(Part):
    """The answer in large type, its reasons, and tiles of figures.

    Attributes:
        name: the answer.
        rule: the rule that found it.
        sentences: the reasons.
        sure: its confidence.
        shares: alternatives with their shares of one, most frequent first.
        tiles: name, value and a note.
    """

    name: str = ""
    rule: str = ""
    sentences: Sequence[str] = ()
    sure: str = ""
    shares: Sequence[tuple[str, float]] = ()
    tiles: Sequence[tuple[str, str, str]] = ()


@dataclass(frozen=True)
class Table(Part):
    """Rows under headings.

    Attributes:
        headings: column headings.
        rows: from top to bottom.
        meanings: heading -> meaning.
        sortable: headings sort the table.
        folded: collapsed at first.
        compact: a matrix with narrow, centred cells.
        header: the column that names a row.
    """

    headings: Sequence[str] = ()
    rows: Sequence[Row] = ()
    meanings: Mapping[str, str] = field(default_factory=dict)
    sortable: bool = False
    folded: bool = False
    compact: bool = False
    header: int = 0


@dataclass(frozen=True)
class Figure(Part):
    """Charts under one legend, and the table of their values.

    Attributes:
        charts: side by side if there is room.
        table: the values.
        least: width in pixels below which charts are stacked.
        hidden: series hidden at first.
    """

    charts: Sequence[Chart] = ()
    table: Table | None = None
    least: int = 560
    hidden: Sequence[str] = ()

    @property
    def series(self) -> list[Series]:
        """Return the series of all charts, in order."""
        return list(dict.fromkeys(series for chart in self.charts for series in chart.series))


@dataclass(frozen=True)
class Answer:
    """One answer."""

    text: str
    right: bool
    who: str = ""


@dataclass(frozen=True)
class Item:
    """A picture (a PNG in base64, or None) with a question and its answers."""

    picture: str | None
    title: str
    lead: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Gallery(Part):
    """Pictures with questions and answers."""

    items: Sequence[Item] = ()


@dataclass(frozen=True)
class Tag:
    """A word on an entry.

    Attributes:
        text: the word.
        series: colour number.
        facets: facet -> value, for filtering.
        hint: tooltip.
    """

    text: str
    series: int
    facets: Mapping[str, str]
    hint: str = ""


@dataclass(frozen=True)
class Entry:
    """An expandable line.

    Attributes:
        title: the line.
        note: smaller text after it.
        search: searchable text.
        tags: group -> words on the entry.
        sentences: first part of the content.
        tables: second part of the content.
    """

    title: str
    note: str
    search: str
    tags: Mapping[str, Sequence[Tag]]
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Entries(Part):
    """Expandable lines, searchable by words and facets; only on the page.

    Attributes:
        entries: in order.
        facets: facet -> its values.
    """

    entries: Sequence[Entry] = ()
    facets: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Dial:
    """Something to vary.

    Attributes:
        name: what it is.
        values: its positions, as text.
        start: the position at first.
    """

    name: str
    values: Sequence[str]
    start: int = 0


@dataclass(frozen=True)
class Outcome:
    """What comes out at one position of the dials."""

    name: str
    sentences: Sequence[str] = ()


@dataclass(frozen=True)
class WhatIf(Part):
    """Two dials and what comes out; a table where nothing can be moved.

    Attributes:
        dials: the rows' and the columns'.
        outcomes: outcomes[row][column].
    """

    dials: tuple[Dial, Dial]
    outcomes: Sequence[Sequence[Outcome]]

    @property
    def table(self) -> Table:
        """Return the outcomes' names by the dials' positions."""
        rows, columns = self.dials
        cells = [
            Row([Cell(value), *(Cell(outcome.name) for outcome in line)])
            for value, line in zip(rows.values, self.outcomes, strict=True)
        ]
        headings = [rows.name, *(f"{columns.name}: {value}" for value in columns.values)]
        return Table(f"{self.id}-table", self.caption, self.source, headings, cells)


@dataclass(frozen=True)
class Section:
    """A section of a report: id, heading, a sentence, and parts."""

    id: str
    title: str
    lead: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Document:
    """The content of a page and its Markdown.

    Attributes:
        title: title.
        lead: subject and date.
        sections: in order.
        foot: footer: how it was made.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    foot: str


def tabulate(
    part: tuple[str, str, str],
    quantities: Sequence[Quantity],
    rows: Sequence[Any],
    *,
    tone: Callable[[Any], Tone] = lambda row: "",
    sortable: bool = False,
    folded: bool = False,
) -> Table:
    """Build a table: a row per result, a column per quantity that any row has.

    Args:
        part: id, caption and JSON pointer of the table.
        quantities: the columns, in order.
        rows: the results.
        tone: a row's tone.
        sortable, folded: see :class:`Table`.
    """
    known = [q for q in quantities if any(q.of(row) is not None for row in rows)]
    scales = {q.name: q.scale(rows) if q.drawn else None for q in known}
    return Table(
        *part,
        headings=[q.name for q in known],
        rows=[_row([q.cell(row, scales[q.name]) for q in known], tone(row)) for row in rows],
        meanings={q.name: q.meaning for q in known if q.meaning},
        sortable=sortable,
        folded=folded,
    )


def _row(cells: Sequence[Cell], tone: Tone) -> Row:
    """Build a row; values that a reference lacks stay empty."""
    if tone == "reference":
        cells = [Cell("") if cell.text == words.MISSING else cell for cell in cells]
    return Row(cells, tone)


def text_rows(rows: Iterable[Sequence[str]]) -> list[Row]:
    """Build rows of plain texts."""
    return [Row([Cell(text) for text in row]) for row in rows]
