"""The report of an edit comparison: report.json, report.md and report.html.

The JSON file is the report; the other two are renderings of it. The HTML page is one file that asks
the network for nothing: its drawings are inside, its policy forbids everything else, and the only
script (the filter of the table of edits) is allowed by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from markupsafe import Markup

from modalign.editing.compare.report import markdown, plots, view
from modalign.editing.compare.report.schema import schema_text
from modalign.editing.compare.results import EditComparison
from modalign.files import write_atomically
from modalign.numbers import words
from modalign.pages.page import resource, template

__all__ = ["render_html", "render_json", "render_markdown", "schema_text", "write_report"]


def write_report(comparison: EditComparison, out: Path) -> None:
    """Write report.json, report.md and report.html into ``out``; each whole or not at all."""
    write_atomically(out / "report.json", render_json(comparison))
    write_atomically(out / "report.md", render_markdown(comparison))
    write_atomically(out / "report.html", render_html(comparison))


def render_json(comparison: EditComparison) -> str:
    """The comparison itself."""
    return comparison.model_dump_json(indent=2) + "\n"


def render_markdown(comparison: EditComparison) -> str:
    """Tables only."""
    return markdown.render(comparison)


def render_html(comparison: EditComparison) -> str:
    """One self-contained page."""
    script = resource(__name__, "report.js.jinja").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = [comparison.headline, *comparison.parts]
    panels = {
        mode: [
            Markup(drawing)
            for name in names
            if (drawing := plots.score_panel(comparison, mode, name))
        ]
        for mode in comparison.modes
    }
    return template(__name__, "report.html.jinja").render(
        c=comparison,
        names=names,
        largest=comparison.sizes[-1],
        panels=panels,
        glyph=lambda method: Markup(plots.glyph(comparison, method)),
        view=view,
        fmt=words,
        script=Markup(script),
        script_hash=digest,
    )
