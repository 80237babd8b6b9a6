"""A report as Markdown: words and tables, with escaped text."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from modalign.pages.parts import (
    Advice,
    Cell,
    Document,
    Entries,
    Figure,
    Gallery,
    Part,
    Section,
    Table,
    WhatIf,
    Words,
)


def render(report: Document) -> str:
    """Render a report: figures as tables of their values, without entries."""
    parts = [f"# {escape(report.title)}", escape(report.lead)]
    for section in report.sections:
        parts += _section(section)
    return "\n\n".join(filter(None, [*parts, escape(report.foot)])) + "\n"


def _section(section: Section) -> list[str]:
    found = [text for part in section.parts for text in _part(part)]
    return [f"## {escape(section.title)}", escape(section.lead), *found] if found else []


def _part(part: Part) -> list[str]:  # noqa: PLR0911
    match part:
        case Words(form="command"):
            return ["\n".join("    " + line for s in part.sentences for line in s.splitlines())]
        case Words(form="list"):
            heading = [f"### {escape(part.caption)}"] if part.caption else []
            return [*heading, "\n".join(f"* {escape(s)}" for s in part.sentences)]
        case Words():
            return [escape(sentence) for sentence in part.sentences]
        case Advice():
            return _advice(part)
        case Table():
            return _captioned(part)
        case WhatIf():
            return _captioned(part.table)
        case Figure(table=Table() as numbers):
            return _captioned(numbers, part.caption)
        case Gallery():
            return _gallery(part)
        case Figure() | Entries():
            return []
    raise TypeError(f"{type(part).__name__} has no form in Markdown")


def _advice(part: Advice) -> list[str]:
    shares = ", ".join(f"{escape(name)} {share * 100:.0f} %" for name, share in part.shares)
    tiles = [f"* {escape(name)}: {escape(f'{value} {note}')}" for name, value, note in part.tiles]
    return [
        f"**{escape(part.caption)}: {escape(part.name)}**",
        escape(part.rule),
        *map(escape, part.sentences),
        escape(part.sure),
        f"Picks when repeated: {shares}." if shares else "",
        "\n".join(tiles),
    ]


def _captioned(part: Table, caption: str = "") -> list[str]:
    words = caption or part.caption
    meanings = [f"* **{escape(name)}**: {escape(text)}." for name, text in part.meanings.items()]
    rows = [_cells(row.cells, italic=row.tone == "reference") for row in part.rows]
    heading = [f"### {escape(words)}"] if words else []
    return [*heading, table([escape(h) for h in part.headings], rows), "\n".join(meanings)]


def _cells(cells: Sequence[Cell], italic: bool) -> list[str]:
    found: list[str] = []
    for cell in cells:
        between = "" if not (cell.text and cell.note) else " " if cell.note[0] == "(" else ": "
        words = escape(f"{cell.text}{between}{cell.note}")
        if cell.tone in ("right", "wrong"):
            words = f"{cell.tone}: {words}"
        found += [f"*{words}*" if italic and not found else words, *[""] * (cell.columns - 1)]
    return found


def _gallery(part: Gallery) -> list[str]:
    found = []
    for item in part.items:
        rows = [
            ["right" if a.right else "wrong", escape(a.text), escape(a.who)] for a in item.answers
        ]
        found += [f"### {escape(item.title)}", escape(item.lead)]
        found.append(table(["", "Answer", "Who"], rows))
    return found


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table of already escaped cells."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def escape(text: str) -> str:
    """Escape text for a Markdown table: no markup, HTML or line ends."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return "".join("\\" + c if c in "\\`*_[]|#!~" else c for c in flat)
