"""The report of an edit comparison: report.json, report.md and report.html.

The JSON file is the report; the other two are renderings of it.
"""

from __future__ import annotations

from pathlib import Path

from modalign.editing.compare.results import EditComparison
from modalign.files import write_atomically


def write_report(comparison: EditComparison, out: Path) -> None:
    """Write report.json into ``out``; whole or not at all."""
    write_atomically(out / "report.json", comparison.model_dump_json(indent=2) + "\n")
