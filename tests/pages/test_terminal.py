"""A report's table in the terminal: every cell, and no wider than it."""

from __future__ import annotations

import io

from rich.console import Console

from modalign.numbers.estimate import Estimate
from modalign.pages.parts import Quantity, tabulate
from modalign.pages.terminal import terminal


def test_every_cell_is_shown_and_markup_stays_text() -> None:
    rows = [
        {"name": "[red]a", "share": Estimate(value=0.5, low=0.25, high=0.75, n=4)},
        {"name": "b", "share": None},
    ]
    columns = [Quantity("Name", "name"), Quantity("Share", "share")]
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(terminal(tabulate(("t", "All of them", "/rows"), columns, rows)))
    told = console.export_text()
    for words in ("All of them", "Name", "Share", "[red]a", "50.0 % (25.0 to 75.0)", "–"):
        assert words in told
    assert max(map(len, told.splitlines())) <= 60
