"""Markdown tables, and text that stays text in them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are escaped already."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def escape(text: str) -> str:
    """Text that stays text in a Markdown table: no markup, no HTML, no line ends."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return "".join("\\" + c if c in "\\`*_[]|#!~" else c for c in flat)
