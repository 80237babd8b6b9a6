"""A report's tables for the terminal."""

from __future__ import annotations

from rich import table as rich
from rich.text import Text

from modalign.pages.parts import Table, Tone

_STYLES: dict[Tone, str] = {"chosen": "bold", "reference": "dim"}


def terminal(table: Table, title: str = "") -> rich.Table:
    """Render a table under its caption or another title; wide cells wrap."""
    made = rich.Table(title=Text(title or table.caption))
    for place, heading in enumerate(table.headings):
        right = any(len(row.cells) > place and row.cells[place].number for row in table.rows)
        made.add_column(heading, justify="right" if right else "left")
    for row in table.rows:
        cells = [Text(" ".join(filter(None, (cell.text, cell.note)))) for cell in row.cells]
        made.add_row(*cells, style=_STYLES.get(row.tone))
    return made
